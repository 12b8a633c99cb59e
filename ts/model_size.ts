/** How large a model file may be. */
import { QkvGemmError } from './errors.js';

/** A protobuf message cannot be longer. */
export const MAX_PROTOBUF = 2 ** 31 - 1;

/** @throws QkvGemmError `UNSUPPORTED_MODEL` for a model file above 2 GB. */
export function checkModelSize(file: string, bytes: number): void {
  if (bytes <= MAX_PROTOBUF) return;
  throw new QkvGemmError(
    'UNSUPPORTED_MODEL',
    `'${file}' has ${bytes} bytes; one protobuf message, and so a model file, holds at most 2 GB. Save its weights as external data where it is made (torch.onnx.export with external_data, onnx.save_model with save_as_external_data).`,
  );
}

/** @throws QkvGemmError `UNSUPPORTED_MODEL` where what was made of a model is too large for a file. */
export function checkResultSize(bytes: number, largest = MAX_PROTOBUF): void {
  if (bytes <= largest) return;
  throw new QkvGemmError(
    'UNSUPPORTED_MODEL',
    `The rewritten model would have ${bytes} bytes; a model file holds at most ${largest}. Use --save-as-external-data.`,
  );
}
