/** `qkvgemm info`: what this machine has. */
import { QkvGemmError } from '../errors.js';
import { cudaDevices, installSessionHook, instructionSet } from '../session/addon.js';
import { libraryPath, platformName } from '../session/library.js';
import { EXIT } from './exit.js';

/** A part of the answer, or why there is none. */
function attempt<T>(get: () => T): { value: T } | { error: string } {
  try {
    return { value: get() };
  } catch (error) {
    if (error instanceof QkvGemmError) return { error: error.message };
    throw error;
  }
}

export async function infoCommand(flags: { json?: boolean }): Promise<number> {
  const library = attempt(() => libraryPath());
  // Not everybody has a CUDA device, so that neither is missed.
  const cudaLibrary = attempt(() => libraryPath({ cuda: true }));
  const devices = attempt(() => cudaDevices());
  const isa = attempt(() => instructionSet());
  const runtimes = attempt(() => installSessionHook());
  let providers: string[] = [];
  if ('value' in runtimes) {
    const ort = await import('onnxruntime-node');
    providers = ort.listSupportedBackends().map((backend) => backend.name);
  }
  const info = {
    platform: platformName(),
    node: process.version,
    library: 'value' in library ? library.value : null,
    cudaLibrary: 'value' in cudaLibrary ? cudaLibrary.value : null,
    cudaDevices: 'value' in devices ? devices.value : [],
    instructionSet: 'value' in isa ? isa.value : null,
    runtimes: 'value' in runtimes ? runtimes.value : [],
    providers,
    problems: [library, isa, runtimes].flatMap((part) => ('error' in part ? [part.error] : [])),
  };
  if (flags.json) {
    console.log(JSON.stringify(info, undefined, 2));
  } else {
    console.log(`platform         ${info.platform}, Node ${info.node}`);
    console.log(`library          ${info.library ?? 'not found'}`);
    console.log(`CUDA library     ${info.cudaLibrary ?? 'not found'}`);
    console.log(`CUDA devices     ${info.cudaDevices.join('; ') || 'none'}`);
    console.log(`instruction set  ${info.instructionSet ?? 'unknown'}`);
    for (const r of info.runtimes)
      console.log(`ONNX Runtime     ${r.version} ${r.path}${r.hooked ? '' : ` (${r.problem})`}`);
    console.log(`providers        ${providers.join(', ') || 'none'}`);
    for (const problem of info.problems) console.log(`problem          ${problem}`);
  }
  return info.problems.length === 0 ? EXIT.ok : EXIT.failed;
}
