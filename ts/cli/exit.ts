/** Exit codes of the command; the help text lists them. */
export const EXIT = { ok: 0, failed: 1, usage: 2, nothingFused: 3, different: 4 } as const;
