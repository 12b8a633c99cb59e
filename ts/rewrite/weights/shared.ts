/** Packed weights by what they were packed from: several nodes that multiply by the same initialisers share one matrix. */
import type { GraphIndex } from '../graph_index.js';
import type { Projection } from '../projections/projection.js';
import { storedName, type Weights } from './assemble.js';

interface Entry {
  home: GraphIndex;
  projections: readonly Projection[];
  weights: Weights;
}

export class SharedWeights {
  private readonly entries = new Map<string, Entry[]>();

  /** The operands that were made of the same tensors in the same order, if a node of this graph can read them. */
  find(index: GraphIndex, projections: readonly Projection[]): Weights | undefined {
    const found = this.entries
      .get(keyOf(projections))
      ?.find((entry) => isVisible(index, entry.home) && areAlike(entry.projections, projections));
    return found && { ...found.weights, initializers: [] };
  }

  /** Weights that were made of initialisers alone; what is computed is not compared, nor what lies in a function. */
  add(index: GraphIndex, home: GraphIndex, projections: readonly Projection[], weights: Weights): void {
    if (home.inFunction || !projections.every(({ weight }) => storedName(index, weight) !== undefined))
      return;
    const key = keyOf(projections);
    this.entries.set(key, [...(this.entries.get(key) ?? []), { home, projections, weights }]);
  }
}

const keyOf = (projections: readonly Projection[]): string =>
  JSON.stringify(projections.map(({ weight, n }) => [weight.tensor.name, n]));

function isVisible(from: GraphIndex, home: GraphIndex): boolean {
  for (let index: GraphIndex | undefined = from; index; index = index.parent) if (index === home) return true;
  return false;
}

function areAlike(some: readonly Projection[], others: readonly Projection[]): boolean {
  return some.every((a, i) => {
    const b = others[i];
    if (!b || a.weight.tensor !== b.weight.tensor || a.weightTransposed !== b.weightTransposed) return false;
    const [q, r] = [a.quantization, b.quantization];
    return (
      a.k === b.k &&
      a.alpha === b.alpha &&
      q?.block === r?.block &&
      equal(q?.scale, r?.scale) &&
      equal(q?.zeroPoint, r?.zeroPoint)
    );
  });
}

function equal(a: ArrayLike<number> | undefined, b: ArrayLike<number> | undefined): boolean {
  if (!a || !b || a.length !== b.length) return a === b;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
}
