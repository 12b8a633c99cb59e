"""Times of calls on a GPU by CUDA-graph replay, peers in turn: clocks and power drift, so that only a ratio of times
taken side by side means anything."""

import random
import statistics

import torch

# Weights are rotated through more than twice the largest L2 cache around (50 MB on H100 and H200).
ROTATION_BYTES = 180e6


def copies(bytes_each):
    """How many copies of a tensor of that size it takes to keep it out of the L2 cache."""
    return max(2, int(ROTATION_BYTES // max(bytes_each, 1)) + 1)


class Timed:
    """A list of calls (one for each copy of the weights) captured in one graph."""

    def __init__(self, calls, minimum=16):
        self.calls = calls  # with the memory that the graph reads and writes
        repeats = max(1, -(-minimum // len(calls)))
        self.count = repeats * len(calls)
        self.times = []
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls[:2]:
                call()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for _ in range(repeats):
                for call in calls:
                    call()
        self.graph.replay()
        torch.cuda.synchronize()

    def once(self, replays=1):
        """Microseconds a call in so many replays, kept in `times`."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(replays):
            self.graph.replay()
        end.record()
        end.synchronize()
        self.times.append(begin.elapsed_time(end) * 1000 / (replays * self.count))

    def median(self):
        return statistics.median(self.times)

    def spread(self):
        """The times that a tenth of the rounds stay below and above."""
        ordered = sorted(self.times)
        last = len(ordered) - 1
        return ordered[round(0.1 * last)], ordered[round(0.9 * last)]


# A device at its power limit runs a kernel up to 15 % faster for 30 to 80 ms after one that drew less, and then by turns
# faster and slower by as much. So each graph is replayed for a while before it is timed, whichever came before, and then
# for long enough to see the mean: 150 and 50 milliseconds. With few rows, which draw less, 45 and 15 will do.
SETTLING = 3  # times as long as it is timed


def race(timed, rounds, microseconds=50e3, seed=1):
    """Times each of the dict's graphs once a round for so long, settled, in an order that is drawn anew for each round."""
    graphs = list(timed.values())
    for graph in graphs:
        graph.once()
        replay = graph.times[0] * graph.count
        graph.settling = max(1, int(SETTLING * microseconds / replay))
        graph.replays = max(1, int(microseconds / replay))
        graph.times.clear()
    order = random.Random(seed)
    for _ in range(rounds):
        order.shuffle(graphs)
        for graph in graphs:
            for _ in range(graph.settling):
                graph.graph.replay()
            graph.once(graph.replays)


def copy_bandwidth():
    """Bytes a microsecond that an elementwise kernel reads and writes, over more than 400 MB."""
    source = torch.ones(128 << 20, dtype=torch.float16, device="cuda")
    target = torch.empty_like(source)
    timed = Timed([lambda: torch.add(source, 1, out=target)], minimum=4)
    for _ in range(9):
        timed.once()
    return 2 * source.numel() * source.element_size() / timed.median()
