/** Stable identifiers of everything that can go wrong; programs branch on these, people read the message. */
export type QkvGemmErrorCode =
  | 'INVALID_ARGUMENT' // a caller's option or path is wrong
  | 'INVALID_MODEL' // not ONNX, truncated, inconsistent
  | 'UNSUPPORTED_MODEL' // valid, but beyond what this version handles
  | 'FILE_NOT_FOUND'
  | 'FILE_NOT_READABLE'
  | 'FILE_NOT_WRITABLE'
  | 'FILE_EXISTS'
  | 'EXTERNAL_DATA' // missing, out of range or outside the model's folder
  | 'LIBRARY_NOT_FOUND'
  | 'LIBRARY_LOAD_FAILED'
  | 'RUNTIME_UNSUPPORTED' // onnxruntime-node too old, not loaded, unknown platform
  | 'CHECK_FAILED'; // two models disagree

/** Messages name what the model names, and names can have any length: their middle is left out, as is a message's. */
const LONGEST = 4000;
const LONGEST_WORD = 1000;

function shortened(text: string, longest: number): string {
  const left = text.length - longest;
  if (left <= 0) return text;
  const end = longest / 4;
  return `${text.slice(0, longest - end)} ... (${left} characters left out) ... ${text.slice(-end)}`;
}

function readable(message: string): string {
  if (message.length <= LONGEST) return message;
  return shortened(
    message.replace(/\S+/g, (word) => shortened(word, LONGEST_WORD)),
    LONGEST,
  );
}

/** The one error class of the package: `code` is stable, `message` says what, where, what was expected, what to do. */
export class QkvGemmError extends Error {
  override readonly name = 'QkvGemmError';
  constructor(
    readonly code: QkvGemmErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(readable(message), options);
  }
}

/** What an error says, whatever was thrown. */
export function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** The error with the file that it came up in; what is wrong with an output names that already. */
export function named(input: string, error: unknown): unknown {
  if (!(error instanceof QkvGemmError) || error.message.includes(`'${input}'`)) return error;
  if (error.code.startsWith('FILE_')) return error; // names the output
  return new QkvGemmError(error.code, `'${input}': ${error.message}`, { cause: error });
}
