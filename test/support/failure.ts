/** The error that an action must end with. */
import { expect } from 'chai';
import { QkvGemmError } from '../../ts/errors.js';

export async function failure(action: () => unknown): Promise<QkvGemmError> {
  try {
    await action();
  } catch (error) {
    expect(error).to.be.instanceOf(QkvGemmError);
    return error as QkvGemmError;
  }
  throw new Error('expected an error');
}
