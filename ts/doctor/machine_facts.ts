/** What the operating system says of processor, C library and GPU driver. */
import fs from 'node:fs';
import os from 'node:os';

/** Of a processor's features, those that kernels use or could. */
const FEATURES = [
  'avx', 'avx2', 'fma', 'f16c', 'avx512f', 'avx512bw', 'avx512vl', 'avx512_vnni', 'avx512_bf16', 'avx512_fp16', 'avx_vnni',
  'amx_tile', 'amx_int8', 'amx_bf16', 'asimd', 'asimddp', 'bf16', 'i8mm', 'sve',
]; // prettier-ignore

function read(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'utf8');
  } catch {
    return undefined;
  }
}

/** What the operating system says of the processor. */
export interface CpuFacts {
  /** Its name. */
  model: string;
  /** Processors that this process may use. */
  cores: number;
  /** Instruction-set extensions that kernels use or could, as Linux names them. */
  features: string[];
}

/** @param cpuinfo what /proc/cpuinfo says. */
export function cpuFacts(cpuinfo = read('/proc/cpuinfo') ?? ''): CpuFacts {
  const flags = new Set(/^(?:flags|Features)\s*:(.*)$/m.exec(cpuinfo)?.[1]?.trim().split(/\s+/) ?? []);
  return {
    model: os.cpus()[0]?.model.trim() ?? 'unknown processor',
    cores: os.availableParallelism(),
    features: FEATURES.filter((name) => flags.has(name)),
  };
}

/** `glibc 2.36`; null where the C library is none that Node names. */
export function libcName(): string | null {
  const { header } = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  if (header?.glibcVersionRuntime !== undefined) return `glibc ${header.glibcVersionRuntime}`;
  return process.platform === 'linux' ? 'musl' : null;
}

/** Version of NVIDIA's kernel driver; null where there is none. */
export function nvidiaDriver(version = read('/proc/driver/nvidia/version')): string | null {
  return /Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)/.exec(version ?? '')?.[1] ?? null;
}
