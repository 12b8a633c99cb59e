// Takes a clone to where it can build, test and run; plain JavaScript because it runs before anything is installed.
//
//   node scripts/setup.mjs [--build] [--run test|demo|bench:cpu|lint|format [arguments]]
//
// Each step is skipped when its result is already there, so a second call does no work twice.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

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

function buildNative() {
  const include = ortHeaders();
  say('building the library and the addon (cmake-js)');
  const hint =
    'the native build failed; it needs cmake >= 3.22, make and g++ >= 12 (Debian: apt-get install cmake make g++)';
  const cmakeJs = (command) =>
    node(
      bin.cmakeJs,
      [command, '--log-level', 'error', '--parallel', '2', `--CDONNXRUNTIME_INCLUDE_DIR=${include}`],
      { hint },
    );
  // cmake-js configures a fresh build folder by itself, but does not notice that an option changed.
  const cache = 'build/CMakeCache.txt';
  const configured = fs.existsSync(cache) && fs.readFileSync(cache, 'utf8').includes(`=${include}\n`);
  if (!configured) cmakeJs('configure');
  cmakeJs('build');
}

function buildTypeScript() {
  say('compiling TypeScript');
  node(bin.tsc, ['-p', 'tsconfig.json']);
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
    if (args.length === 0) {
      say('testing the CPU kernels and the plans of the CUDA kernels');
      for (const test of ['qkvgemm_cpu_test', 'qkvgemm_cuda_plan_test'])
        run(path.resolve('build/Release', test), []);
    }
    // Not in mocha's configuration: it would add the files there to those given here.
    const files = args.some((arg) => arg.endsWith('.ts'));
    node(bin.mocha, files ? args : [...args, 'test/**/*.test.ts']);
  },
  demo(args) {
    build();
    node(bin.tsx, ['scripts/demo.ts', ...args]);
  },
  'bench:cpu'(args) {
    build();
    node(bin.tsx, ['scripts/bench_cpu.ts', ...args]);
  },
  lint() {
    node(bin.tsc, ['-p', 'tsconfig.check.json']);
    node(bin.eslint, ['.', '--max-warnings', '0']);
    node(bin.prettier, ['--check', '--log-level', 'warn', '.']);
    node(bin.clangFormat, ['--dry-run', '--Werror', ...sources('.cc', '.h')]);
  },
  format() {
    node(bin.prettier, ['--write', '--log-level', 'warn', '.']);
    node(bin.clangFormat, ['-i', ...sources('.cc', '.h')]);
  },
};

function build() {
  buildNative();
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
