/** A model in a session, under the names that its graph has. */
import type { InferenceSession, Tensor } from 'onnxruntime-node';
import { withQkvGemm } from '../session/index.js';
import type { Boundary } from './boundary.js';

export interface RunnerOptions {
  /** Load this package's library (default true). */
  library?: boolean;
  provider?: 'cpu' | 'cuda';
  threads?: number;
  /** ONNX Runtime's graph optimisations (default all). */
  optimize?: boolean;
  /** Further session options. */
  session?: InferenceSession.SessionOptions;
}

/** Session options for these. */
export function sessionOptions(options: RunnerOptions): InferenceSession.SessionOptions {
  const { library = true, provider = 'cpu', threads, optimize = true, session = {} } = options;
  const all: InferenceSession.SessionOptions = {
    logSeverityLevel: 4,
    executionProviders: [provider],
    ...(threads === undefined ? {} : { intraOpNumThreads: threads }),
    ...(optimize ? {} : { graphOptimizationLevel: 'disabled' }),
    ...session,
  };
  return library ? withQkvGemm(all) : all;
}

export class Runner {
  private constructor(
    private readonly session: InferenceSession,
    private readonly boundary: Boundary,
  ) {}

  /** @throws what ONNX Runtime throws, and QkvGemmError as `withQkvGemm`. */
  static async create(boundary: Boundary, options: RunnerOptions = {}): Promise<Runner> {
    const ort = await import('onnxruntime-node');
    const { session } = boundary.options.extra ?? {};
    const all = sessionOptions(options);
    const merged = session === undefined ? all : { ...all, extra: { ...all.extra, session } };
    const created =
      typeof boundary.model === 'string'
        ? await ort.InferenceSession.create(boundary.model, merged)
        : await ort.InferenceSession.create(boundary.model, merged);
    return new Runner(created, boundary);
  }

  /** The inputs, as JavaScript feeds them. */
  get inputs(): InferenceSession.ValueMetadata[] {
    const original = new Map([...this.boundary.inputs].map(([name, fed]) => [fed, name]));
    return this.session.inputMetadata.map((input) => ({
      ...input,
      name: original.get(input.name) ?? input.name,
    }));
  }

  /** Names of the outputs. */
  get outputs(): string[] {
    const original = new Map([...this.boundary.outputs].map(([name, fetched]) => [fetched, name]));
    return this.session.outputNames.map((name) => original.get(name) ?? name);
  }

  /** Outputs that are no tensors. */
  get others(): ReadonlySet<string> {
    const { outputs } = this;
    return new Set(outputs.filter((_, i) => this.session.outputMetadata[i]?.isTensor === false));
  }

  /** Runs the model; what it has no input for is left out. */
  async run(
    feeds: Readonly<Record<string, Tensor>>,
    fetch?: readonly string[],
  ): Promise<Record<string, Tensor>> {
    const { inputs, outputs } = this.boundary;
    const fed: Record<string, Tensor> = {};
    for (const { name } of this.inputs) {
      const tensor = feeds[name];
      if (tensor) fed[inputs.get(name) ?? name] = tensor;
    }
    const wanted = (fetch ?? this.outputs).map((name) => [name, outputs.get(name) ?? name] as const);
    const results = await this.session.run(
      fed,
      wanted.map(([, name]) => name),
    );
    return Object.fromEntries(
      wanted.flatMap(([name, fetched]) => (results[fetched] ? [[name, results[fetched]]] : [])),
    );
  }

  /** Ends profiling, where the session has it. */
  endProfiling(): void {
    this.session.endProfiling();
  }

  release(): Promise<void> {
    return this.session.release();
  }
}
