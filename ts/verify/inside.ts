/** The values that two graphs have inside under the same names, compared in pieces that fit into memory. */
import type { Tensor } from 'onnxruntime-node';
import { QkvGemmError, reason } from '../errors.js';
import type { Progress } from '../progress.js';
import { DataType, dataTypeName } from '../onnx/tensor.js';
import type { OpenModel } from './boundary.js';
import { compareTensors, type Bounds, type ValueDifference } from './difference.js';
import type { Feeds } from './feed_plan.js';
import { PROTO_TYPES } from './input_files.js';
import { Runner, type RunnerOptions } from './runner.js';

/** How the values inside two graphs compare. */
export interface InsideReport {
  /** In A's graph order. */
  values: ValueDifference[];
  /** The first value, in A's graph order, that is beyond the bounds: what is wrong begins there. */
  firstBeyond?: string;
  /** Values of the same name that could not be fetched, and why. */
  leftOut: {
    /** The value. */
    name: string;
    /** What stood in the way. */
    reason: string;
  }[];
}

export interface Side {
  model: OpenModel;
  options: RunnerOptions;
  feeds: Feeds;
}

/** Bytes of values that one run fetches of each model, about. */
const BUDGET = 2 ** 28;
const FIRST_PIECE = 16;

/** Runs both with these values as outputs, as often as it takes to see them all. */
export async function compareInside(
  a: Side,
  b: Side,
  bounds: Bounds,
  onProgress: (progress: Progress) => void = () => undefined,
): Promise<InsideReport> {
  const inB = new Set(b.model.inside);
  const leftOut: InsideReport['leftOut'] = [];
  const shared = a.model.inside.filter((name) => {
    if (!inB.has(name)) return false;
    const types = [a, b].map(({ model }) => model.index.typeOf(name));
    const held = types.every(
      (type) => type === undefined || type === DataType.bfloat16 || type in PROTO_TYPES,
    );
    if (!held)
      leftOut.push({ name, reason: `it is of ${types.map((t) => dataTypeName(t ?? 0)).join(' and ')}` });
    return held;
  });
  const [runnerA, runnerB] = [await openInside(a, shared, leftOut), await openInside(b, shared, leftOut)];
  const values: ValueDifference[] = [];
  try {
    const others = [...runnerA.others, ...runnerB.others].filter((name) => shared.includes(name));
    for (const name of new Set(others)) leftOut.push({ name, reason: 'it is no tensor' });
    const skipped = new Set(leftOut.map(({ name }) => name));
    const names = shared.filter((name) => !skipped.has(name));
    let piece = FIRST_PIECE;
    let bytes = 0;
    for (let at = 0; at < names.length;) {
      const some = names.slice(at, at + piece);
      const [x, y] = [await runnerA.run(a.feeds, some), await runnerB.run(b.feeds, some)];
      for (const name of some) {
        values.push(compareTensors(name, x[name], y[name], bounds));
        bytes += sizeOf(x[name]);
      }
      at += some.length;
      piece = Math.max(1, Math.floor((BUDGET * at) / Math.max(1, bytes)));
      onProgress({ phase: 'values', done: at, total: names.length });
    }
  } finally {
    await runnerA.release();
    await runnerB.release();
  }
  const beyond = values.find(({ within }) => !within);
  return { values, leftOut, ...(beyond ? { firstBeyond: beyond.name } : {}) };
}

function sizeOf(tensor: Tensor | undefined): number {
  return tensor ? ((tensor.data as Partial<ArrayBufferView>).byteLength ?? 0) : 0;
}

/**
 * A session with these values as outputs. The binding refuses a model that has an output of a type that JavaScript cannot
 * hold: then those whose type nothing states are left out.
 */
async function openInside(
  { model, options }: Side,
  names: readonly string[],
  leftOut: InsideReport['leftOut'],
): Promise<Runner> {
  const fetched = (list: readonly string[]): Promise<Runner> => Runner.create(model.boundary(list), options);
  try {
    return await fetched(names);
  } catch (error) {
    if (error instanceof QkvGemmError) throw error;
    const typed = names.filter((name) => model.index.typeOf(name) !== undefined);
    const because = `its type is not known, and '${model.file}' does not load with it as an output: ${reason(error)}`;
    try {
      const runner = await fetched(typed);
      const known = new Set(leftOut.map(({ name }) => name));
      for (const name of names)
        if (!typed.includes(name) && !known.has(name)) leftOut.push({ name, reason: because });
      return runner;
    } catch (inner) {
      throw new QkvGemmError(
        'UNSUPPORTED_MODEL',
        `'${model.file}' does not load with the values inside as outputs: ${reason(inner)}. Leave out --intermediates.`,
        { cause: inner },
      );
    }
  }
}
