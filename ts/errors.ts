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

/** Messages name what the model names, and names can have any length: the middle of a longer message is left out. */
const LONGEST = 4000;
const TAIL = 1000;

function shortened(message: string): string {
  const left = message.length - LONGEST;
  if (left <= 0) return message;
  return `${message.slice(0, LONGEST - TAIL)} ... (${left} characters left out) ... ${message.slice(-TAIL)}`;
}

/** The one error class of the package: `code` is stable, `message` says what, where, what was expected, what to do. */
export class QkvGemmError extends Error {
  override readonly name = 'QkvGemmError';
  constructor(
    readonly code: QkvGemmErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(shortened(message), options);
  }
}
