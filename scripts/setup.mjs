// Takes a clone to where it can build, test and run; plain JavaScript because it runs before anything is installed.
//
//   node scripts/setup.mjs [--build] [--run test|demo|build:web|bench:cpu|bench:gpu|bench:models|bench:rewrite|docs|pictures|pack|lint|format [arguments]]
//
// Each step is skipped when its result is already there, so a second call does no work twice.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { ARM64_FOLDER, arm64Commands, whyNoArm64 } from './arm64.mjs';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
process.chdir(root);

/** ONNX Runtime's C headers come from the one npm package that ships them; 0.4.9 holds release 1.29.0. */
const headers = {
  runtime: '1.29.0',
  package: 'com.github.asus4.onnxruntime@0.4.9',
  integrity:
    'sha512-BkzxduSZ9IkeDP6Q8lz2TFU2ie7hSSvS7ZIfzMooExoq0CNzJnuuGaUJ7IsojBgqO4ouD1jXah8OYyJbCN29Fg==',
  folder: 'package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64/onnxruntime.framework/Headers',
};

/** What `--run` offers: commands in order, each a Node module below node_modules or a path. */
const bin = {
  mocha: 'node_modules/mocha/bin/mocha.js',
  tsx: 'node_modules/tsx/dist/cli.mjs',
  tsc: 'node_modules/typescript/bin/tsc',
  eslint: 'node_modules/eslint/bin/eslint.js',
  prettier: 'node_modules/prettier/bin/prettier.cjs',
  typedoc: 'node_modules/typedoc/bin/typedoc',
  cmakeJs: 'node_modules/cmake-js/bin/cmake-js',
  clangFormat: 'node_modules/clang-format/index.js',
};

function fail(message) {
  console.error(`setup: ${message}`);
  process.exit(1);
}

function say(message) {
  console.error(`[setup] ${message}`);
}

function run(command, args, { hint = '', ...options } = {}) {
  const result = spawnSync(command, args, { stdio: 'inherit', ...options });
  if (result.error) fail(`cannot run ${command}: ${result.error.message}. ${hint}`);
  if (result.status !== 0) {
    if (hint) console.error(`setup: ${hint}`);
    process.exit(result.status ?? 1);
  }
}

const node = (script, args, options) => run(process.execPath, [script, ...args], options);

function installPackages() {
  const lock = createHash('sha256').update(fs.readFileSync('package-lock.json')).digest('hex');
  const stamp = 'node_modules/.setup-lock';
  if (fs.existsSync(stamp) && fs.readFileSync(stamp, 'utf8') === lock) return;
  say('installing npm packages (npm ci)');
  // No package here needs its install script: onnxruntime-node's would only download CUDA files.
  run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], {
    env: { ...process.env, ONNXRUNTIME_NODE_INSTALL: 'skip' },
    hint: 'npm ci failed: is the npm registry reachable?',
  });
  fs.writeFileSync(stamp, lock);
}

function ortHeaders() {
  const given = process.env.ONNXRUNTIME_INCLUDE_DIR;
  if (given) {
    if (!fs.existsSync(path.join(given, 'onnxruntime_c_api.h')))
      fail(
        `ONNXRUNTIME_INCLUDE_DIR is '${given}', but onnxruntime_c_api.h is not there. Unset it to use the headers of ${headers.runtime}.`,
      );
    return path.resolve(given);
  }
  const folder = path.resolve('build', 'onnxruntime', headers.runtime, 'include');
  if (fs.existsSync(path.join(folder, 'onnxruntime_c_api.h'))) return folder;
  say(
    `fetching the headers of ONNX Runtime ${headers.runtime} (a download of 150 MB, of which 15 files are kept)`,
  );
  fs.mkdirSync('build', { recursive: true });
  const scratch = fs.mkdtempSync(path.resolve('build', 'headers-'));
  try {
    run('npm', ['pack', '--silent', headers.package, '--pack-destination', scratch], {
      stdio: ['ignore', 'ignore', 'inherit'],
      hint: `npm could not fetch ${headers.package}; set ONNXRUNTIME_INCLUDE_DIR to a folder with the headers of ONNX Runtime >= 1.22 instead.`,
    });
    const tarball = path.join(scratch, fs.readdirSync(scratch)[0]);
    const integrity = `sha512-${createHash('sha512').update(fs.readFileSync(tarball)).digest('base64')}`;
    if (integrity !== headers.integrity)
      fail(`${headers.package}: integrity is ${integrity}, expected ${headers.integrity}; not used.`);
    const depth = headers.folder.split('/').length;
    run('tar', ['-xzf', tarball, '-C', scratch, `--strip-components=${depth}`, headers.folder]);
    fs.rmSync(tarball);
    fs.mkdirSync(path.dirname(folder), { recursive: true });
    fs.renameSync(scratch, folder);
  } finally {
    fs.rmSync(scratch, { recursive: true, force: true });
  }
  return folder;
}

const CUDA_LIBRARY = 'libqkvgemm-cuda.so';

/** The first release of CUDA that has all that is called (cudaGetDriverEntryPointByVersion). */
const OLDEST_NVCC = '12.5';

function isOlder(release, other) {
  const [[major, minor], [otherMajor, otherMinor]] = [release, other].map((r) => r.split('.').map(Number));
  return major === otherMajor ? minor < otherMinor : major < otherMajor;
}

/** Path and release of nvcc: `CUDACXX`, else on the PATH, else where NVIDIA's packages put it. */
function findNvcc() {
  const places = process.env.CUDACXX ? [process.env.CUDACXX] : ['nvcc', '/usr/local/cuda/bin/nvcc'];
  for (const place of places) {
    const { stdout } = spawnSync(place, ['--version'], { encoding: 'utf8' });
    const [, release] = /release (\d+\.\d+)/.exec(stdout ?? '') ?? [];
    if (release) return { path: place, release, tooOld: isOlder(release, OLDEST_NVCC) };
  }
  return undefined;
}

/** Why the CUDA library is not built; '' where it is. */
function whyNoCuda(wish, nvcc) {
  if (wish === '0') return 'QKVGEMM_CUDA is 0';
  if (!nvcc && process.env.CUDACXX) return `CUDACXX, '${process.env.CUDACXX}', is no nvcc`;
  if (!nvcc) return 'there is no nvcc on the PATH or in /usr/local/cuda/bin';
  return nvcc.tooOld ? `nvcc is ${nvcc.release}, and ${OLDEST_NVCC} is needed` : '';
}

/**
 * CMake options of the CUDA library, which is built where nvcc is, unless `QKVGEMM_CUDA` says 0 or 1. What does not need it
 * (`needed` false) does not wait for a first build of it either.
 */
function cudaOptions(needed) {
  const wish = process.env.QKVGEMM_CUDA ?? '';
  if (!['', '0', '1'].includes(wish))
    fail(
      `QKVGEMM_CUDA is '${wish}'; it takes 1 (build the CUDA library), 0 (do not) or '' (if nvcc is there)`,
    );
  if (!needed && wish !== '1' && !fs.existsSync(path.join('build', 'Release', CUDA_LIBRARY)))
    return { QKVGEMM_CUDA: 'OFF' };
  const nvcc = findNvcc();
  const why = whyNoCuda(wish, nvcc);
  if (why) {
    if (wish === '1') fail(`QKVGEMM_CUDA is 1, but ${why}. Install the CUDA toolkit, or set CUDACXX.`);
    say(`not building the CUDA library: ${why}`);
    fs.rmSync(path.join('build', 'Release', CUDA_LIBRARY), { force: true }); // that of other sources
    return { QKVGEMM_CUDA: 'OFF' };
  }
  say(
    `building the CUDA library too, with nvcc ${nvcc.release} (takes minutes; QKVGEMM_CUDA=0 leaves it out)`,
  );
  return {
    QKVGEMM_CUDA: 'ON',
    CMAKE_CUDA_COMPILER: nvcc.path,
    QKVGEMM_CUDA_ARCHITECTURES: process.env.QKVGEMM_CUDA_ARCHITECTURES || 'all',
  };
}

function buildNative(cuda) {
  const options = { ONNXRUNTIME_INCLUDE_DIR: ortHeaders(), ...cudaOptions(cuda) };
  say('building the library and the addon (cmake-js)');
  const hint =
    'the native build failed; it needs cmake >= 3.22, make and g++ >= 12 (Debian: apt-get install cmake make g++)' +
    (options.QKVGEMM_CUDA === 'ON'
      ? ', for the CUDA library a g++ that nvcc takes; QKVGEMM_CUDA=0 leaves that library out'
      : '');
  const defines = Object.entries(options).map(([name, value]) => `--CD${name}=${value}`);
  const cmakeJs = (command) =>
    node(bin.cmakeJs, [command, '--log-level', 'error', '--parallel', '2', ...defines], { hint });
  // cmake-js configures a fresh build folder by itself, but does not notice that an option changed.
  const stamp = 'build/.configured';
  const wanted = defines.join('\n');
  if (!fs.existsSync(stamp) || fs.readFileSync(stamp, 'utf8') !== wanted) cmakeJs('configure');
  fs.writeFileSync(stamp, wanted);
  cmakeJs('build');
}

/** Builds for 64-bit Arm where its compiler is, unless `QKVGEMM_ARM64` says 0 or 1. */
function buildArm64() {
  const wish = process.env.QKVGEMM_ARM64 ?? '';
  if (!['', '0', '1'].includes(wish))
    fail(
      `QKVGEMM_ARM64 is '${wish}'; it takes 1 (build for it), 0 (do not) or '' (if its compiler is there)`,
    );
  const why = whyNoArm64(wish);
  if (why && wish === '1') fail(`QKVGEMM_ARM64 is 1, but ${why}.`);
  if (why) {
    say(`not building for 64-bit Arm: ${why}`);
    return fs.rmSync(path.join(ARM64_FOLDER, 'libqkvgemm.so'), { force: true }); // that of other sources
  }
  say('building for 64-bit Arm (QKVGEMM_ARM64=0 leaves it out)');
  for (const args of arm64Commands(ortHeaders()))
    run('cmake', args, {
      stdio: ['ignore', 'ignore', 'inherit'],
      hint: 'the build for 64-bit Arm failed; QKVGEMM_ARM64=0 leaves it out',
    });
}

function buildTypeScript() {
  say('compiling TypeScript');
  node('scripts/compile.mjs', []);
}

function sources(...extensions) {
  const listed = spawnSync('git', ['ls-files', '--cached', '--others', '--exclude-standard'], {
    encoding: 'utf8',
  });
  if (listed.status !== 0) fail('lint and format look at the files git knows; run them in a git checkout.');
  return listed.stdout
    .split('\n')
    .filter((file) => extensions.some((e) => file.endsWith(e)) && fs.existsSync(file));
}

const tasks = {
  test(args) {
    build();
    buildArm64();
    if (args.length === 0) {
      const cuda = fs.existsSync(path.join('build', 'Release', CUDA_LIBRARY));
      if (!cuda) say('the CUDA library is not built: the test of its kernels is skipped');
      say('testing the kernels');
      // That of the CUDA kernels says by itself that there is no device.
      for (const test of ['cpu', 'tuning', 'cuda_plan', ...(cuda ? ['cuda'] : [])])
        run(path.resolve('build/Release', `qkvgemm_${test}_test`), []);
    }
    // Not in mocha's configuration: it would add the files there to those given here.
    const files = args.some((arg) => arg.endsWith('.ts'));
    node(bin.mocha, files ? args : [...args, 'test/**/*.test.ts']);
  },
  demo(args) {
    build({ cuda: false });
    node(bin.tsx, ['scripts/demo.ts', ...args]);
  },
  'bench:cpu'(args) {
    build({ cuda: false });
    node(bin.tsx, ['scripts/bench_cpu.ts', ...args]);
  },
  'bench:gpu'(args) {
    build();
    node(bin.tsx, ['scripts/bench_gpu.ts', ...args]);
  },
  'bench:models'(args) {
    build({ cuda: false });
    node(bin.tsx, ['scripts/bench_models.ts', ...args]);
  },
  'bench:rewrite'(args) {
    build({ cuda: false });
    node(bin.tsx, ['scripts/bench_rewrite.ts', ...args]);
  },
  'build:web'() {
    say('building the page into build/web');
    node(bin.tsx, ['scripts/build_web.ts']);
  },
  docs() {
    say('writing the documentation of the API into build/docs');
    node(bin.typedoc, []);
  },
  pictures() {
    say('drawing the pictures of the README into scripts/pictures');
    node(bin.tsx, ['scripts/pictures.ts']);
  },
  pack(args) {
    build();
    buildArm64();
    node('scripts/pack.mjs', args);
  },
  lint() {
    node(bin.tsc, ['-p', 'tsconfig.check.json']);
    node(bin.tsc, ['-p', 'tsconfig.web.json']);
    node(bin.eslint, ['.', '--max-warnings', '0']);
    node(bin.prettier, ['--check', '--log-level', 'warn', '.']);
    node(bin.typedoc, ['--emit', 'none']); // what is exported and not documented, and broken links
    node(bin.clangFormat, ['--dry-run', '--Werror', ...sources('.cc', '.h', '.cu', '.cuh')]);
  },
  format() {
    node(bin.prettier, ['--write', '--log-level', 'warn', '.']);
    node(bin.clangFormat, ['-i', ...sources('.cc', '.h', '.cu', '.cuh')]);
  },
};

function build({ cuda = true } = {}) {
  buildNative(cuda);
  buildTypeScript();
}

const [flag, name, ...rest] = process.argv.slice(2);
installPackages();
if (flag === '--run') {
  if (!Object.hasOwn(tasks, name ?? ''))
    fail(`unknown task '${name}'; one of ${Object.keys(tasks).join(', ')}`);
  tasks[name](rest);
} else if (flag === undefined || flag === '--build') {
  build();
  say('done');
} else {
  fail(`unknown option '${flag}'; usage: node scripts/setup.mjs [--build] [--run TASK]`);
}
