/** Stable identifiers of everything that can go wrong; programs branch on these, people read the message. */
export type QkvGemmErrorCode =
  /** A caller's option or path is wrong. */
  | 'INVALID_ARGUMENT'
  /** A model is not ONNX, truncated or inconsistent, or does not run. */
  | 'INVALID_MODEL'
  /** A model is valid, but beyond what this version handles. */
  | 'UNSUPPORTED_MODEL'
  /** A file does not exist. */
  | 'FILE_NOT_FOUND'
  /** A file is there, but cannot be read. */
  | 'FILE_NOT_READABLE'
  /** A file or its folder cannot be written: no such folder, no permission, no space. */
  | 'FILE_NOT_WRITABLE'
  /** The output is there already, and may not be replaced. */
  | 'FILE_EXISTS'
  /** External data is missing, out of range or outside the model's folder. */
  | 'EXTERNAL_DATA'
  /** A custom-op library or one of this package's binaries is not there. */
  | 'LIBRARY_NOT_FOUND'
  /** It is there, but the system's loader refuses it. */
  | 'LIBRARY_LOAD_FAILED'
  /** onnxruntime-node is too old or not there, or the platform is none that libraries can be loaded on. */
  | 'RUNTIME_UNSUPPORTED'
  /** Two models disagree. */
  | 'CHECK_FAILED';

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
  /** Always `QkvGemmError`. */
  override readonly name = 'QkvGemmError';

  /**
   * An error with a code.
   *
   * @param code what kind of error it is.
   * @param message what people read; the middle is left out where it is longer than 4000 characters.
   * @param options `cause`: the error behind this one.
   */
  constructor(
    /** What kind of error it is; it does not change from version to version. */
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
