/**
 * The rewriter against mutated models, of the corpus where it is present and generated ones.
 *
 *   npx tsx scripts/fuzz_rewrite.ts [--seconds 60 | --count N] [--seed S] [--save DIR]
 *
 * Prints the seed, the inputs seen and what became of them. Whatever does not end in a rewritten model or an error of the
 * package, hangs, or takes too much memory is saved, and the exit code is 1.
 */
import { parseArgs } from 'node:util';
import { describeFuzz, fuzz } from './fuzz/fuzz.js';

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '60' },
    count: { type: 'string' },
    seed: { type: 'string' },
    save: { type: 'string', default: 'build/fuzz' },
  },
});
const seed = values.seed === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(values.seed);
const limit =
  values.count === undefined ? { seconds: Number(values.seconds) } : { count: Number(values.count) };
if (!Number.isSafeInteger(seed) || Object.values(limit).some((value) => !(value > 0))) {
  console.error('fuzz_rewrite: expected --seconds > 0 or --count > 0, and a whole number as --seed.');
  process.exitCode = 2;
} else {
  console.log(`seed ${seed}`);
  const result = await fuzz({ seed, save: values.save, ...limit });
  console.log(describeFuzz(result));
  if (result.findings.length > 0) process.exitCode = 1;
}
