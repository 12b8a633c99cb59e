/** What the page and its worker say to each other. */
import type { Progress } from '../progress.js';
import type { FuseOptions } from '../rewrite/options.js';

export type Provider = 'wasm' | 'webgpu';

/** A file that is made. */
export interface Made {
  name: string;
  content: Blob;
}

export type Request =
  | { kind: 'fuse'; files: File[]; options: FuseOptions }
  | { kind: 'run'; provider: Provider; dims: string; seed: number; maxError: number };

export type Answer =
  | { kind: 'progress'; text: string; done: number; total: number }
  | {
      kind: 'fused';
      /** Markup, escaped where it is made. */
      head: string;
      sections: { id: string; title: string; body: string }[];
      /** The model first; nothing where nothing was fused. */
      made: Made[];
      /** What `fuse --report` writes. */
      report: Made;
      /** Why both cannot be run here, where that is so. */
      notRun?: string;
      /** External files of the original that the model still needs beside it. */
      needed: string[];
    }
  | { kind: 'ran'; body: string }
  | { kind: 'failed'; code: string; message: string };

const PHASES: Record<Progress['phase'], string> = {
  pack: 'Packing weights',
  move: 'Moving weights',
  copy: 'Copying files',
  check: 'Checking',
  values: 'Comparing values',
  rounds: 'Timing',
};

export const progressOf = ({ phase, done, total }: Progress): Answer => ({
  kind: 'progress',
  text: PHASES[phase],
  done,
  total,
});
