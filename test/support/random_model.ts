/**
 * Models made at random from a seed: layers with norms in any spelling, projections in any form, readers anywhere, constants in
 * any form and graph, and parts of layers in the branches of an If or the body of a Loop.
 */
import { ModelBuilder, uniform } from '../../models/builder.js';
import { DataType } from '../../ts/onnx/tensor.js';

/** Length of the normalised axis. */
export const K = 8;

export interface RandomModel {
  bytes: Uint8Array;
  /** Shape of an input that fits. */
  dims: number[];
  /** Some values in it are of 16 bits. */
  low: boolean;
}

export function randomModel(seed: number): RandomModel {
  return new Writer(seed).write();
}

class Writer {
  private state: number;
  private count = 0;
  /** The graph that is written, the model's own or one within. */
  private m: ModelBuilder;
  private readonly root: ModelBuilder;
  private low = false;
  private readonly opset: number;
  private readonly flat: boolean;
  /** Inner values that become graph outputs. */
  private readonly exposed = new Set<string>();

  constructor(private readonly seed: number) {
    this.state = seed * 7919 + 1;
    this.opset = this.pick([9, 12, 13, 17, 18, 20]);
    this.root = new ModelBuilder({ '': this.opset, 'com.microsoft': 1 });
    this.m = this.root;
    this.flat = this.once(4);
  }

  private get within(): boolean {
    return this.m !== this.root;
  }

  /** Makes an inner value a graph output; those of graphs within cannot be. */
  private expose(name: string): void {
    if (!this.within) this.exposed.add(name);
  }

  write(): RandomModel {
    this.m.input('x', this.dims());
    if (this.opset >= 18) this.m.integers('axes', [1], [-1]);
    let x = 'x';
    for (let layers = 1 + this.below(3); layers > 0; layers--) x = this.layer(x);
    this.m.output(x);
    for (const name of this.exposed) this.m.output(name);
    return { bytes: this.m.finish(), dims: this.flat ? [6, K] : [2, 3, K], low: this.low };
  }

  private below(limit: number): number {
    this.state = (Math.imul(this.state, 1103515245) + 12345) >>> 0;
    return (this.state >>> 8) % limit;
  }

  /** True once in so many times. */
  private once(times: number): boolean {
    return this.below(times) === 0;
  }

  private pick<T>(from: readonly [T, ...T[]]): T {
    return from[this.below(from.length)] ?? from[0];
  }

  private node(opType: string, inputs: string[], attributes = {}): string {
    return this.m.node(opType, inputs, [`${opType.toLowerCase()}_${this.count++}`], { attributes });
  }

  /** A node of two operands in either order. */
  private commutative(opType: string, a: string, b: string): string {
    return this.node(opType, this.once(2) ? [a, b] : [b, a]);
  }

  /** An initialiser or Constant node, of this graph or the model's own, now and then behind a node that changes nothing. */
  private floats(dims: number[], limit: number, centre = 0, type: number = DataType.float): string {
    const values = uniform(dims.reduce((a, b) => a * b, 1), limit, this.count + this.seed, centre); // prettier-ignore
    const home = this.once(2) ? this.m : this.root;
    const name = `c_${this.count++}`;
    if (this.once(4)) home.constant(name, dims, values, type);
    else home.floats(name, dims, values, type);
    if (this.once(12)) return this.node('Identity', [name]);
    return this.once(16) ? this.node('Cast', [name], { to: { integer: type } }) : name;
  }

  private scalar(value: number): string {
    const name = `s_${this.count++}`;
    const home = this.once(2) ? this.m : this.root;
    return this.once(2) ? home.floats(name, [], [value]) : home.constant(name, this.pick([[], [1]]), [value]);
  }

  private transpose(value: string): string {
    return this.node('Transpose', [value], { perm: { integers: this.flat ? [1, 0] : [0, 2, 1] } });
  }

  private mean(of: string): string {
    if (this.opset >= 18) return this.node('ReduceMean', [of, 'axes']);
    const last = this.flat ? 1 : 2;
    return this.node('ReduceMean', [of], { axes: { integers: [this.once(6) ? last : -1] } });
  }

  private cast(value: string, to: number = DataType.float): string {
    return this.node('Cast', [value], { to: { integer: to } });
  }

  /** A norm, now and then between Casts of float32 to itself. */
  private norm(value: string): string {
    const x = this.once(10) ? this.cast(value) : value;
    const h = this.normOf(x);
    return this.once(10) ? this.cast(h) : h;
  }

  private normOf(x: string): string {
    const kind = this.below(this.opset >= 17 ? 6 : 2);
    const axis = this.once(3) ? { axis: { integer: this.flat ? 1 : 2 } } : {};
    const gamma = (): string => this.floats([K], 0.5, 1);
    const beta = (): string => this.floats([K], 0.5);
    if (kind === 2)
      return this.node('LayerNormalization', [x, gamma(), ...(this.once(2) ? [beta()] : [])], axis);
    if (kind === 3) return this.node('SimplifiedLayerNormalization', [x, gamma()], axis);
    if (kind > 3) return this.skipNorm(x, kind === 4, gamma(), beta());
    const d = kind === 0 ? this.node('Sub', [x, this.mean(x)]) : x;
    const again = kind === 0 && this.once(3) ? this.node('Sub', [x, this.mean(x)]) : d;
    const squares = this.once(2)
      ? this.node('Mul', [again, again])
      : this.node('Pow', [again, this.scalar(2)]);
    const v = this.commutative('Add', this.mean(squares), this.scalar(1e-3));
    const root = this.once(2) ? this.node('Sqrt', [v]) : this.node('Pow', [v, this.scalar(0.5)]);
    let h = this.once(2)
      ? this.node('Div', [d, root])
      : this.commutative('Mul', d, this.node('Reciprocal', [root]));
    for (const inner of [squares, v, root]) if (this.once(25)) this.expose(inner);
    if (!this.once(3)) h = this.commutative('Mul', h, gamma());
    if (this.once(8)) this.expose(h);
    return kind === 0 && !this.once(3) ? this.commutative('Add', h, beta()) : h;
  }

  /** The norm of x and another term, which ONNX Runtime's optimisers write as one node. */
  private skipNorm(x: string, simplified: boolean, gamma: string, beta: string): string {
    const other = this.node('Tanh', [x]);
    const bias = this.once(2) ? [this.floats([K], 0.5)] : [];
    const sum = `sum_${this.count++}`;
    const op = simplified ? 'SkipSimplifiedLayerNormalization' : 'SkipLayerNormalization';
    const inputs = [x, other, gamma, ...(simplified ? [] : [beta]), ...bias];
    const h = this.m.node(op, inputs, [`skip_${this.count++}`, '', '', sum], { domain: 'com.microsoft' });
    if (this.once(3)) this.expose(sum);
    return h;
  }

  private project(h: string, n: number): string {
    let a = h;
    for (let aliases = this.below(8); aliases > 5; aliases--) a = this.node('Identity', [a]);
    if (this.flat && this.once(2)) {
      const transB = this.below(2);
      const c = this.opset < 11 || this.once(2) ? [this.floats([n], 0.5)] : [];
      return this.node('Gemm', [a, this.floats(transB ? [n, K] : [K, n], 0.6), ...c], {
        transB: { integer: transB },
        alpha: { float: this.pick([1, 1, 0.5]) },
        beta: { float: this.pick([1, 1, 0.25]) },
      });
    }
    let p = this.product(a, n);
    if (this.once(8)) this.expose(p);
    if (this.once(2)) p = this.commutative('Add', p, this.floats([n], 0.5));
    return this.once(4) ? this.node('Add', [p, this.pick([this.floats([n], 0.5), this.scalar(0.5)])]) : p;
  }

  private product(a: string, n: number): string {
    const weight = (type?: number): string =>
      this.once(4)
        ? this.node('Transpose', [this.floats([n, K], 0.6, 0, type)], { perm: { integers: [1, 0] } })
        : this.floats([K, n], 0.6, 0, type);
    if (this.once(12)) {
      this.low = true;
      const low = this.cast(a, DataType.float16);
      return this.cast(this.node('MatMul', [low, weight(DataType.float16)]));
    }
    if (this.once(12)) {
      const [transB, alpha] = [this.below(2), this.pick([1, 0.5])];
      const name = `fused_${this.count++}`;
      const attributes = { transB: { integer: transB }, alpha: { float: alpha } };
      const operands = [a, this.floats(transB ? [n, K] : [K, n], 0.6)];
      return this.m.node('FusedMatMul', operands, [name], { domain: 'com.microsoft', attributes });
    }
    return this.node('MatMul', [a, weight()]);
  }

  /** Nodes that put rows elsewhere, and those that put what comes of them back. */
  private moved(h: string, of: (moved: string) => string): string {
    const turn = (value: string): string =>
      this.node('Transpose', [value], { perm: { integers: [1, 0, 2] } });
    if (this.flat || !this.once(5)) return of(h);
    const rows = turn(h);
    return turn(of(rows));
  }

  /** A value that is written in a branch of an If, in the body of a Loop that takes `x` to it, or where it stands. */
  private placed(x: string, write: (x: string) => string): string {
    const place = this.within ? 9 : this.below(6);
    if (place > 1) return write(x);
    const [outer, inner] = [this.m, new ModelBuilder()];
    const name = `placed_${this.count++}`;
    const condition = this.node('Less', [this.node('ReduceMean', [x], { keepdims: { integer: 0 } }), this.scalarOf(this.pick([100, -100]))]);
    const written = (graph: ModelBuilder, value: string): ModelBuilder => {
      this.m = graph;
      graph.output(this.node('Identity', [write(value)]), this.dims());
      this.m = outer;
      return graph;
    };
    if (place === 0) {
      const otherwise = new ModelBuilder();
      const both = { then_branch: written(inner, x), else_branch: otherwise };
      if (this.once(2)) written(otherwise, x);
      else otherwise.output(otherwise.node('Tanh', [x], [`else_${this.count++}`]), this.dims());
      return outer.node('If', [condition], [name], { graphs: this.once(2) ? both : { then_branch: both.else_branch, else_branch: both.then_branch } });
    }
    const [state, go] = [`state_${this.count}`, `go_${this.count++}`];
    inner.input(`i_${name}`, [], DataType.int64);
    inner.input(go, [], DataType.bool);
    inner.input(state, this.dims());
    inner.output(inner.node('Identity', [go], [`${go}_on`]), [], DataType.bool);
    const trips = outer.integers(`trips_${name}`, [], [2]);
    return outer.node('Loop', [trips, '', x], [name], { graphs: { body: written(inner, state) } });
  } // prettier-ignore

  private dims(): (string | number)[] {
    return this.flat ? ['rows', K] : ['batch', 'rows', K];
  }

  private scalarOf(value: number): string {
    return this.root.floats(`s_${this.count++}`, [], [value]);
  }

  /** (Q^T K) V^T of projections, brought back to K columns. */
  private attention(h: string, other: string): string {
    const n = this.pick([1, 4, 5]);
    const [q, k, v] = (
      this.once(3)
        ? this.cut(this.project(h, 3 * n), n)
        : [0, 1, 2].map(() => this.project(this.once(6) ? other : h, n))
    ) as [string, string, string];
    const scores = this.node('MatMul', [this.transpose(q), k]);
    const mixed = this.transpose(this.node('MatMul', [scores, this.transpose(v)]));
    return this.node('MatMul', [this.node('Tanh', [mixed]), this.floats([n, K], 0.6)]);
  }

  /** Three pieces of a packed projection, by Split or Slice. */
  private cut(packed: string, n: number): string[] {
    const names = [0, 1, 2].map((i) => `piece_${this.count}_${i}`);
    this.count++;
    const axis = this.once(2) ? -1 : this.flat ? 1 : 2;
    if (this.once(2)) {
      // From opset 18 on a Split without widths says how many pieces it makes.
      const count = this.opset >= 18 ? { num_outputs: { integer: 3 } } : {};
      this.m.node('Split', [packed], names, { attributes: { axis: { integer: axis }, ...count } });
    } else {
      const int = (value: number): string => this.m.integers(`i_${this.count++}`, [1], [value]);
      for (const [i, name] of names.entries()) {
        const [from, to] = [i * n, (i + 1) * n];
        if (this.opset > 9) this.m.node('Slice', [packed, int(from), int(to), int(axis)], [name]);
        else
          this.m.node('Slice', [packed], [name], {
            attributes: {
              starts: { integers: [from] },
              ends: { integers: [to] },
              axes: { integers: [axis] },
            },
          });
      }
    }
    if (this.once(10)) this.expose(packed);
    return names;
  }

  private layer(x: string): string {
    return this.once(2) ? this.placed(x, (inner) => this.layerOf(inner)) : this.layerOf(x);
  }

  private layerOf(x: string): string {
    const h = this.norm(x);
    const second = this.once(5) ? this.norm(h) : h;
    const attention = (): string =>
      this.moved(h, (rows) => this.attention(rows, h === second ? rows : this.norm(rows)));
    // In a branch, projections read a norm outside of it; what a Loop carries is not read there.
    const mixed = this.once(3)
      ? this.placed(x, (inner) => this.node('Add', [inner, attention()]))
      : attention();
    let y = this.node('Add', [x, mixed]);
    if (this.once(4)) y = this.node('Add', [y, this.attention(h, second)]);
    if (this.once(3)) {
      const up = this.node('Relu', [this.project(h, 6)]);
      y = this.node('Add', [y, this.node('MatMul', [up, this.floats([6, K], 0.6)])]);
    }
    if (this.once(6)) this.expose(h);
    if (this.once(8)) this.node('Identity', [this.node('Identity', [h])]);
    if (this.once(8)) this.expose(this.node('Mul', [h, y]));
    if (this.once(8) && !this.within) this.m.output(this.node('Shape', [h]), undefined, DataType.int64);
    return y;
  }
}
