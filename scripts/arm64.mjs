// The library, the addon and the kernels' tests for 64-bit Arm, built on another machine into build/linux-arm64.
import { spawnSync } from 'node:child_process';
import path from 'node:path';

/** Folder of what is built. */
export const ARM64_FOLDER = path.join('build', 'linux-arm64');

/** Their package's, as npm has it, and what takes symbols off them. */
export const ARM64_PLATFORM = 'linux-arm64-gnu';
export const ARM64_STRIP = 'aarch64-linux-gnu-strip';

const COMPILER = 'aarch64-linux-gnu-g++';

/** Why nothing is built for 64-bit Arm; '' where it is. `wish`: the environment variable QKVGEMM_ARM64. */
export function whyNoArm64(wish) {
  if (wish === '0') return 'QKVGEMM_ARM64 is 0';
  if (process.arch === 'arm64') return 'this machine is one: what is built for it is in build/Release';
  if (spawnSync(COMPILER, ['--version']).error)
    return `${COMPILER} is not installed (Debian: apt-get install g++-aarch64-linux-gnu qemu-user-static)`;
  return '';
}

/** Command lines that configure and build; `headers` is the folder of ONNX Runtime's. */
export function arm64Commands(headers) {
  const node = path.resolve('node_modules', 'node-api-headers', 'include');
  return [
    ['-S', '.', '-B', ARM64_FOLDER, '--toolchain', 'ops/portable/linux_arm64.cmake', '-DCMAKE_BUILD_TYPE=Release',
      `-DONNXRUNTIME_INCLUDE_DIR=${headers}`, `-DCMAKE_JS_INC=${node}`, '-DQKVGEMM_CUDA=OFF', '--no-warn-unused-cli'],
    ['--build', ARM64_FOLDER, '--parallel', '2'],
  ]; // prettier-ignore
}
