"""Times of calls on a GPU by CUDA-graph replay, peers in turn: clocks and power drift, so that only a ratio of times
taken side by side means anything."""

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

    def once(self):
        """One replay: microseconds a call, kept in `times`."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        self.times.append(begin.elapsed_time(end) * 1000 / self.count)

    def median(self):
        return statistics.median(self.times)

    def spread(self):
        """The times that a tenth of the rounds stay below and above."""
        ordered = sorted(self.times)
        last = len(ordered) - 1
        return ordered[round(0.1 * last)], ordered[round(0.9 * last)]


def race(timed, rounds):
    """Replays each of the dict's graphs once a round, in an order that shifts by one from round to round."""
    graphs = list(timed.values())
    for graph in graphs:
        graph.once()  # after a pause clocks are elsewhere
        graph.times.clear()
    for r in range(rounds):
        for i in range(len(graphs)):
            graphs[(i + r) % len(graphs)].once()


def copy_bandwidth():
    """Bytes a microsecond that an elementwise kernel reads and writes, over more than 400 MB."""
    source = torch.ones(128 << 20, dtype=torch.float16, device="cuda")
    target = torch.empty_like(source)
    timed = Timed([lambda: torch.add(source, 1, out=target)], minimum=4)
    for _ in range(9):
        timed.once()
    return 2 * source.numel() * source.element_size() / timed.median()
