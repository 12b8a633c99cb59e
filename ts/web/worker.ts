/** The page's worker: rewrites and runs, so that the page stays responsive. One worker rewrites one model. */
import { QkvGemmError, reason } from '../errors.js';
import { parseDims } from '../sizes.js';
import { progressOf, type Answer, type Request } from './messages.js';
import { rewriteFiles, type Rewritten } from './rewrite.js';
import { runBoth } from './run.js';

let rewritten: Rewritten | undefined;

const answer = (message: Answer): void => {
  postMessage(message);
};

async function handle(request: Request): Promise<Answer> {
  if (request.kind === 'fuse') {
    rewritten = rewriteFiles(request.files, request.options, (progress) => answer(progressOf(progress)));
    return rewritten.answer;
  }
  const { provider, dims, seed, maxError } = request;
  const pair = rewritten?.pair;
  if (!pair) throw new QkvGemmError('INVALID_ARGUMENT', 'There is no fused model to run.');
  const choices = { provider, dims: sizesOf(dims), seed, maxError };
  const body = await runBoth(pair.original, pair.fused, choices, (text, done, total) =>
    answer({ kind: 'progress', text, done, total }),
  );
  return { kind: 'ran', body: body.text };
}

function sizesOf(text: string): ReturnType<typeof parseDims> {
  if (text.trim() === '') return {};
  try {
    return parseDims(text);
  } catch (error) {
    throw new QkvGemmError('INVALID_ARGUMENT', `Sizes: ${reason(error)}.`);
  }
}

addEventListener('message', ({ data }: MessageEvent<Request>) => {
  handle(data).then(answer, (error: unknown) =>
    answer({
      kind: 'failed',
      code: error instanceof QkvGemmError ? error.code : 'INTERNAL',
      message: reason(error),
    }),
  );
});
