/** What this machine has, what is missing, and what to do about it. */
import fs from 'node:fs';
import path from 'node:path';
import { QkvGemmError } from '../errors.js';
import packageRoot from '../package_root.cjs';
import {
  cudaDevices,
  installSessionHook,
  instructionSet,
  OLDEST_RUNTIME,
  tuningFile,
  type LoadedRuntime,
} from '../session/addon.js';
import {
  CPU_LIBRARY,
  CUDA_LIBRARY,
  howToGet,
  LIBRARY_VARIABLE,
  platformName,
  searchBinary,
  type Binary,
  type Search,
} from '../session/library.js';
import { cudaProblem } from '../session/provider.js';
import { cpuFacts, libcName, nvidiaDriver, type CpuFacts } from './machine_facts.js';
import { selfTest } from './self_test.js';
import { isOlder } from '../version_order.js';

/** One thing that was looked at. */
export interface Check {
  /** What was looked at, e.g. `CPU kernels`. */
  name: string;
  /** `note`: it works, but not as well as it could; `problem`: something that is needed is missing. */
  status: 'ok' | 'note' | 'problem';
  /** What is there, or what is wrong. */
  found: string;
  /** What to do, where the status is not ok. */
  action?: string;
}

/** What `diagnose` found. `null` stands for what is not there or not known. */
export interface Diagnosis {
  /** No check found a problem. */
  ok: boolean;
  /** As packages of binaries are named: `linux-x64-gnu`. */
  platform: string;
  /** C library and its release: `glibc 2.36`. */
  libc: string | null;
  /** Release of Node: `v20.19.0`. */
  node: string;
  /** Processor, cores and the features that kernels look for. */
  cpu: CpuFacts;
  /** Instruction set of the CPU kernels. */
  instructionSet: string | null;
  /** Path of the library for the CPU. */
  library: string | null;
  /** Path of the library for CPU and CUDA. */
  cudaLibrary: string | null;
  /** Every place that was looked at for each binary, in order. */
  tried: Record<Binary, string[]>;
  /** Copies of ONNX Runtime in this process. */
  runtimes: LoadedRuntime[];
  /** Execution providers that onnxruntime-node was built for: `cpu`, `cuda`, ...; whether one can be used, `checks` says. */
  providers: string[];
  /** CUDA devices that the driver shows, as `NVIDIA H200, compute capability 9.0`. */
  cudaDevices: string[];
  /** Release of NVIDIA's kernel driver. */
  cudaDriver: string | null;
  /** File of timed plans. */
  tuningFile: string | null;
  /** Everything that was looked at, in the order of what depends on what. */
  checks: Check[];
}

/** A part of the answer, or why there is none. */
function attempt<T>(get: () => T): { value: T } | { error: string } {
  try {
    return { value: get() };
  } catch (error) {
    if (error instanceof QkvGemmError) return { error: error.message };
    throw error;
  }
}

/**
 * Looks at everything that running fused models takes: platform, binaries, onnxruntime-node, GPUs. A model of one node is run.
 *
 * @returns all of it; what is missing is not thrown, but a check that is no `ok`. A CUDA device is not needed, and missed by
 *   nobody without one.
 */
export async function diagnose(): Promise<Diagnosis> {
  const searches = {
    [CPU_LIBRARY]: searchBinary(CPU_LIBRARY),
    [CUDA_LIBRARY]: searchBinary(CUDA_LIBRARY),
    'qkvgemm_session.node': searchBinary('qkvgemm_session.node'),
  };
  const isa = attempt(instructionSet);
  const runtimes = attempt(installSessionHook);
  const devices = attempt(cudaDevices);
  const cache = attempt(tuningFile);
  const providers = 'value' in runtimes ? await backends() : [];
  const facts = {
    platform: platformName(),
    libc: libcName(),
    node: process.version,
    cpu: cpuFacts(),
    instructionSet: 'value' in isa ? isa.value : null,
    library: searches[CPU_LIBRARY].file ?? null,
    cudaLibrary: searches[CUDA_LIBRARY].file ?? null,
    tried: Object.fromEntries(
      Object.entries(searches).map(([name, { tried }]) => [name, tried]),
    ) as Diagnosis['tried'],
    runtimes: 'value' in runtimes ? runtimes.value : [],
    providers,
    cudaDevices: 'value' in devices ? devices.value : [],
    cudaDriver: nvidiaDriver(),
    tuningFile: 'value' in cache ? cache.value : null,
  };
  const checks = [
    nodeCheck(),
    platformCheck(facts),
    binaryCheck('library', CPU_LIBRARY, searches[CPU_LIBRARY]),
    binaryCheck('session addon', 'qkvgemm_session.node', searches['qkvgemm_session.node']),
    // Without the addon nothing is known of these two; that it is missing is said once.
    ...(searches['qkvgemm_session.node'].file === undefined
      ? []
      : [cpuCheck(facts, isa), runtimeCheck(facts, runtimes)]),
    ...(facts.library !== null && 'value' in runtimes ? [await runCheck('cpu')] : []),
    ...(await cudaChecks(facts)),
    tuningCheck(facts),
  ];
  return { ok: checks.every(({ status }) => status !== 'problem'), ...facts, checks };
}

type Facts = Omit<Diagnosis, 'ok' | 'checks'>;

async function backends(): Promise<string[]> {
  const ort = await import('onnxruntime-node');
  return ort.listSupportedBackends().map(({ name }) => name);
}

const ok = (name: string, found: string): Check => ({ name, status: 'ok', found });
const note = (name: string, found: string, action: string): Check => ({
  name,
  status: 'note',
  found,
  action,
});
const problem = (name: string, found: string, action: string): Check => ({
  name,
  status: 'problem',
  found,
  action,
});

function nodeCheck(): Check {
  const oldest = packageRoot.manifest.engines.node.replace(/^>=/, '');
  const { node } = process.versions;
  return isOlder(node, oldest)
    ? problem('Node', node, `Install Node ${oldest} or newer.`)
    : ok('Node', `${node} (${oldest} or newer is needed)`);
}

function platformCheck({ platform, libc }: Facts): Check {
  const found = `${platform}${libc === null ? '' : `, ${libc}`}`;
  if (platform.startsWith('linux-')) return ok('platform', found); // whether there are binaries for it: below
  return problem(
    'platform',
    found,
    'The library is loaded on Linux only. Fused models run here without it, through their function body.',
  );
}

function cpuCheck({ cpu }: Facts, isa: { value: string } | { error: string }): Check {
  const found = `${cpu.model}, ${cpu.cores} cores; ${cpu.features.join(' ') || 'no features that kernels use'}`;
  if ('error' in isa)
    return problem('CPU kernels', isa.error, 'Unset QKVGEMM_ISA, or set it to one of these instruction sets.'); // prettier-ignore
  const forced = process.env.QKVGEMM_ISA;
  if (forced) return note('CPU kernels', `${isa.value}; ${found}`, `QKVGEMM_ISA=${forced} forces them: unset it to use the best.`); // prettier-ignore
  return isa.value === 'scalar'
    ? note('CPU kernels', `scalar; ${found}`, 'A processor with AVX2 would be faster.')
    : ok('CPU kernels', `${isa.value}; ${found}`);
}

function binaryCheck(name: string, binary: Binary, { file, tried, namedBy }: Search): Check {
  if (file !== undefined) return ok(name, `${file}${namedBy ? ` (named by ${namedBy})` : ''}`);
  return problem(
    name,
    `${binary} is not there; tried ${tried.join(', ')}`,
    namedBy ? `Correct ${LIBRARY_VARIABLE}, or unset it to use the one of this package.` : howToGet(binary),
  );
}

function runtimeCheck({ providers }: Facts, runtimes: { value: LoadedRuntime[] } | { error: string }): Check {
  const install = `Install it: npm install onnxruntime-node (${OLDEST_RUNTIME} or newer).`;
  if ('error' in runtimes) return problem('onnxruntime-node', runtimes.error, install);
  const found = runtimes.value
    .map(({ version, path: file, hooked, problem: why }) => `${version} ${file}${hooked ? '' : ` (${why})`}`)
    .join('; ');
  return ok('onnxruntime-node', `${found}; built for ${providers.join(', ') || 'none'}`);
}

async function runCheck(provider: 'cpu' | 'cuda'): Promise<Check> {
  const name = `a node on ${provider}`;
  const why = await selfTest(provider);
  if (why === undefined) return ok(name, 'runs and gives the right result');
  const action =
    provider === 'cpu'
      ? 'See that library and onnxruntime-node are those for this machine; npm run build in a source tree makes the library.'
      : 'See that the library is the one for CUDA (QKVGEMM_LIBRARY may name another) and has code for this device.';
  return provider === 'cpu' ? problem(name, why, action) : note(name, why, action);
}

async function cudaChecks({ cudaDevices: devices, cudaDriver, cudaLibrary, tried }: Facts): Promise<Check[]> {
  if (devices.length === 0)
    return cudaDriver === null
      ? [ok('CUDA', 'no device and no driver: nothing of it is needed')]
      : [note('CUDA', `driver ${cudaDriver}, but no device`, 'See that nvidia-smi lists a device and that CUDA_VISIBLE_DEVICES does not hide it.')]; // prettier-ignore
  const found = `${devices.join('; ')}; driver ${cudaDriver ?? 'unknown'}`;
  const checks = [ok('CUDA', found)];
  checks.push(
    cudaLibrary === null
      ? note('CUDA library', `not there; tried ${tried[CUDA_LIBRARY].join(', ')}`, howToGet(CUDA_LIBRARY))
      : ok('CUDA library', cudaLibrary),
  );
  const problem = await cudaProblem();
  checks.push(
    problem
      ? note('CUDA provider', problem.found, problem.action)
      : ok('CUDA provider', 'sessions run on the device'),
  );
  if (!problem && cudaLibrary !== null) checks.push(await runCheck('cuda'));
  return checks;
}

function tuningCheck({ tuningFile: file }: Facts): Check {
  if (file === null) return ok('timed plans', 'unknown without the session addon');
  if (file === '')
    return note('timed plans', 'no folder for them is known', 'Set QKVGEMM_CACHE_DIR if you want to use qkvgemm tune.'); // prettier-ignore
  if (!fs.existsSync(file)) return ok('timed plans', `none; qkvgemm tune would keep them in ${file}`);
  try {
    JSON.parse(fs.readFileSync(file, 'utf8'));
    return ok('timed plans', file);
  } catch {
    return note(
      'timed plans',
      `${file} cannot be read and is passed over`,
      `Remove it: rm ${path.resolve(file)}`,
    );
  }
}
