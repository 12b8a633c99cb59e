/** The rewrite of dropped files. */
import { named, QkvGemmError } from '../errors.js';
import { companionsOf } from '../located_source.js';
import { checkModelSize, checkResultSize, MAX_PROTOBUF } from '../model_size.js';
import { concat } from '../onnx/wire.js';
import type { Progress } from '../progress.js';
import hashes from 'virtual:report-hashes';
import { FUSE_TITLE, fuseParts, LabelledGraph } from '../report/fuse_parts.js';
import { pageWith } from '../report/page_markup.js';
import type { FuseOptions } from '../rewrite/options.js';
import { freeDataName, rewriteSteps } from '../rewrite_steps.js';
import { BlobData, FilesSource, readBlob, relativePath } from './files.js';
import type { Answer, Made } from './messages.js';

/** A model with all that it refers to, as a session takes it. */
export interface LoadedModel {
  name: string;
  bytes: Uint8Array;
  externalData: { path: string; data: Blob }[];
}

export interface Rewritten {
  answer: Extract<Answer, { kind: 'fused' }>;
  /** The original and what was made of it; absent where nothing was fused. */
  pair?: { original: LoadedModel; fused: LoadedModel };
}

const NO_BODY =
  'Without its function body the fused model needs the library, which browsers do not have: both cannot be run here.';

/** The model among the files. */
function modelOf(files: readonly File[]): File {
  const models = files.length === 1 ? files : files.filter(({ name }) => /\.onnx$/i.test(name));
  const [model, ...others] = models;
  if (model && others.length === 0) return model;
  throw new QkvGemmError(
    'INVALID_ARGUMENT',
    `Expected one .onnx file, with its external-data files, found ${models.length} among: ${files.map(({ name }) => name).join(', ') || 'nothing'}.`,
  );
}

/** `model.onnx` -> `model.fused.onnx`. */
const outputName = (input: string): string => `${input.replace(/(?<=[^])\.[^.]*$/, '')}.fused.onnx`;

/**
 * Rewrites the model among these files, as `fuseFile` does, and reports it.
 *
 * @throws QkvGemmError as `fuseFile`.
 */
export function rewriteFiles(
  files: readonly File[],
  options: FuseOptions,
  onProgress: (progress: Progress) => void,
): Rewritten {
  const model = modelOf(files);
  checkModelSize(model.name, model.size);
  const bytes = readBlob(model, model.name);
  try {
    return rewriteModel(model.name, bytes, files, options, onProgress);
  } catch (error) {
    throw named(model.name, error);
  }
}

function rewriteModel(
  input: string,
  bytes: Uint8Array,
  files: readonly File[],
  options: FuseOptions,
  onProgress: (progress: Progress) => void,
): Rewritten {
  const given = files.map((file) => [file.name, file] as const);
  const source = new FilesSource(given);
  const kept = companionsOf(bytes, source); // what is missing is said before the work
  const output = outputName(input);
  const taken = new Set(kept.map(({ location }) => relativePath(location) ?? location));
  const data = new BlobData(freeDataName(output, taken), source);
  const steps = rewriteSteps(bytes, options, {
    source,
    data,
    always: false,
    everything: false,
    largest: MAX_PROTOBUF,
    movable: 0,
  });
  let step = steps.next();
  for (; !step.done; step = steps.next()) onProgress(step.value);
  const { parts, report } = step.value;
  checkResultSize(report.bytesAfter);
  const before = new LabelledGraph(bytes, source);
  if (report.fused.length === 0) {
    const { head, sections } = fuseParts({ input, before, report });
    return { answer: { kind: 'fused', ...shown(output, head, sections), made: [], needed: [] } };
  }
  const fused = concat(parts);
  const written = data.finish();
  const beside: Made[] = written ? [{ name: data.location, content: written }] : [];
  const all = new FilesSource([...given, ...beside.map(({ name, content }) => [name, content] as const)]);
  const after = new LabelledGraph(fused, all);
  const { head, sections } = fuseParts({ input, output, before, after, report });
  const needed = companionsOf(fused, all, data.location);
  const loaded = (name: string, content: Uint8Array, locations: readonly string[]): LoadedModel => ({
    name,
    bytes: content,
    externalData: locations.map((path) => ({ path, data: all.fileOf(path, path).content })),
  });
  const answer: Rewritten['answer'] = {
    kind: 'fused',
    ...shown(output, head, sections),
    made: [{ name: output, content: new Blob(parts as Uint8Array<ArrayBuffer>[]) }, ...beside],
    needed: needed.map(({ location }) => location),
  };
  if (options.fallback === false) return { answer: { ...answer, notRun: NO_BODY } };
  return {
    answer,
    pair: {
      original: loaded(
        input,
        bytes,
        kept.map(({ location }) => location),
      ),
      fused: loaded(output, fused, [
        ...needed.map(({ location }) => location),
        ...beside.map(({ name }) => name),
      ]),
    },
  };
}

type Parts = ReturnType<typeof fuseParts>;

/** The parts as the page shows them, and the report as a file. */
const shown = (
  output: string,
  head: Parts['head'],
  sections: Parts['sections'],
): Pick<Rewritten['answer'], 'head' | 'sections' | 'report'> => ({
  report: {
    name: output.replace(/onnx$/, 'html'),
    content: new Blob([pageWith(hashes, FUSE_TITLE, head, sections)], { type: 'text/html' }),
  },
  head: head.text,
  sections: sections.map(({ id, title, body }) => ({ id, title, body: body.text })),
});
