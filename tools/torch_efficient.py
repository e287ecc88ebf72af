#!/usr/bin/python3
"""What tests/test_efficient.c expects: a tiny Llama with each method of efficient tuning, by PyTorch in double.

    python3 tools/torch_efficient.py > numbers      (paste them into the test)

For every method one line: the loss, the length of the gradient over all that learns, its product with the direction
cos(i), and the losses after each of three steps of AdamW. Weights and parameters are sines, as in the test. The
formulas are those of the papers, in the form that Hugging Face's PEFT has them.
Shapes: D dim, H hidden, A heads, K kv heads, T tokens of a row.
"""
import math

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
V, D, H, L, A, K, C = 2048, 16, 24, 2, 4, 2, 3
HD, KV = D // A, D // A * K
RANK, ALPHA, BOTTLENECK, LENGTH, SCALE = 2, 6.0, 3, 3, 2.0
ROWS = [[1, 401, 39, 872, 1217], [1, 5, 2000], [1, 77, 950, 33, 8, 1021, 640]]
LABELS = [2, 0, 1]


def sines(shape, k, base=0.0, size=0.25):
    i = torch.arange(math.prod(shape)).double()
    return (base + size * torch.sin(0.7 * i + 0.001 * i * i + k)).reshape(shape)


def make_weights():
    """In the order of the library's table; the biases of norms and the output, which are not there, count."""
    w, each = {"embedding": sines((V, D), 0), "norm": sines((D,), 1, 1.0)}, 11
    shapes = {"n1": (0, (D,)), "q": (2, (D, D)), "k": (3, (KV, D)), "v": (4, (KV, D)), "o": (5, (D, D)),
              "n2": (6, (D,)), "w1": (8, (H, D)), "w2": (9, (D, H)), "w3": (10, (H, D))}
    for layer in range(L):
        for name, (slot, shape) in shapes.items():
            k = 4 + layer * each + slot
            w[f"{layer}.{name}"] = sines(shape, k, 1.0 if len(shape) == 1 else 0.0)
    return w


def rms(x, w):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * w


def rotate(x):
    """x (T, heads, HD): pairs of neighbors, by position."""
    angle = torch.arange(x.shape[0]).double()[:, None] / 10000 ** (torch.arange(0, HD, 2).double() / HD)
    cos, sin = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)


def attend(q, k, v, prefix):
    """Causal; the P keys and values of a prefix are seen by all and take no position."""
    T = q.shape[0]
    q, k, v = rotate(q.view(T, A, HD)), rotate(k.view(T, K, HD)), v.view(T, K, HD)
    n = 0
    if prefix:
        n = prefix[0].shape[0]
        k, v = torch.cat((prefix[0].view(n, K, HD), k)), torch.cat((prefix[1].view(n, K, HD), v))
    k, v = k.repeat_interleave(A // K, 1), v.repeat_interleave(A // K, 1)
    score = torch.einsum("thd,shd->hts", q, k) / math.sqrt(HD)
    hidden = torch.arange(n + T)[None] > torch.arange(T)[:, None] + n
    weight = torch.softmax(score.masked_fill(hidden, -math.inf), -1)
    return torch.einsum("hts,shd->thd", weight, v).reshape(T, D)


class Method:
    """The plain model; what a method changes is overridden."""

    def __init__(self, w):
        self.w, self.learned = w, []

    def new(self, k, *shape, base=0.0, size=0.25):
        x = sines(shape, 100 + k, base, size).requires_grad_()
        self.learned.append(x)
        return x

    def embed(self, ids):
        return self.w["embedding"][ids]

    def matrix(self, layer, name, x):
        return x @ self.w[f"{layer}.{name}"].T

    def key(self, layer, k):
        return k

    def value(self, layer, v):
        return v

    def hidden(self, layer, h):
        return h

    def prefix(self, layer):
        return None

    def after_attention(self, layer, x, y):
        return y

    def after_ffn(self, layer, x, y):
        return y

    def row(self, ids):
        w, x = self.w, self.embed(torch.tensor(ids))
        for i in range(L):
            h = rms(x, w[f"{i}.n1"])
            q, k, v = (self.matrix(i, name, h) for name in "qkv")
            a = attend(q, self.key(i, k), self.value(i, v), self.prefix(i))
            x = x + self.after_attention(i, h, self.matrix(i, "o", a))
            h = rms(x, w[f"{i}.n2"])
            inner = self.hidden(i, F.silu(self.matrix(i, "w1", h)) * self.matrix(i, "w3", h))
            x = x + self.after_ffn(i, h, self.matrix(i, "w2", inner))
        return rms(x, w["norm"])[-1]

    def loss(self):
        pooled = torch.stack([self.row(ids) for ids in ROWS])
        return F.cross_entropy(pooled @ self.head.T + self.head_bias, torch.tensor(LABELS))


class Some(Method):
    def __init__(self, w, names):
        super().__init__(dict(w))
        for name in names:
            self.w[name] = self.w[name].clone().requires_grad_()
            self.learned.append(self.w[name])


TARGETS = ["q", "k", "v", "o", "w1", "w2", "w3"]


class Lora(Method):
    def __init__(self, w, targets, scale, dora=False):
        super().__init__(w)
        self.scale, self.dora, self.pairs, n = scale, dora, {}, 0
        for layer in range(L):
            for name in (t for t in TARGETS if t in targets):
                out, into = w[f"{layer}.{name}"].shape
                pair = [self.new(n, RANK, into), self.new(n + 1, out, RANK)]
                if dora:
                    pair.append(self.new(n + 2, out, base=1.0))
                n += len(pair)
                self.pairs[layer, name] = pair

    def matrix(self, layer, name, x):
        y, pair = super().matrix(layer, name, x), self.pairs.get((layer, name))
        if not pair:
            return y
        y = y + self.scale * (x @ pair[0].T) @ pair[1].T
        if self.dora:
            whole = self.w[f"{layer}.{name}"] + self.scale * pair[1] @ pair[0]
            y = y * (pair[2] / whole.norm(dim=1).detach())
        return y


class Adapter(Method):
    def __init__(self, w, halves):
        super().__init__(w)
        self.nets, n = {}, 0
        for layer in range(L):
            for half in halves:
                self.nets[layer, half] = [self.new(n, BOTTLENECK, D), self.new(n + 1, BOTTLENECK),
                                          self.new(n + 2, D, BOTTLENECK), self.new(n + 3, D)]
                n += 4

    def net(self, layer, half, x):
        down, down_bias, up, up_bias = self.nets[layer, half]
        return F.relu(x @ down.T + down_bias) @ up.T + up_bias


class Serial(Adapter):
    def after_attention(self, layer, x, y):
        return y + self.net(layer, 0, y)

    def after_ffn(self, layer, x, y):
        return y + self.net(layer, 1, y)


class Parallel(Adapter):
    def after_ffn(self, layer, x, y):
        return y + SCALE * self.net(layer, 1, x)


class Prefix(Method):
    def __init__(self, w):
        super().__init__(w)
        self.kv = [self.new(i, LENGTH, KV) for i in range(2 * L)]

    def prefix(self, layer):
        return self.kv[2 * layer], self.kv[2 * layer + 1]


class PrefixMlp(Method):
    def __init__(self, w):
        super().__init__(w)
        self.net = [self.new(0, LENGTH, D), self.new(1, BOTTLENECK, D), self.new(2, BOTTLENECK),
                    self.new(3, 2 * L * KV, BOTTLENECK), self.new(4, 2 * L * KV)]

    def prefix(self, layer):
        e, w1, b1, w2, b2 = self.net
        kv = torch.tanh(e @ w1.T + b1) @ w2.T + b2
        return kv.view(LENGTH, 2 * L, KV)[:, 2 * layer], kv.view(LENGTH, 2 * L, KV)[:, 2 * layer + 1]


class Prompt(Method):
    def __init__(self, w):
        super().__init__(w)
        self.prompt = self.new(0, LENGTH, D)

    def embed(self, ids):
        return torch.cat((self.prompt, super().embed(ids)))


class Ia3(Method):
    def __init__(self, w):
        super().__init__(w)
        self.scales = [self.new(i, KV if i % 3 < 2 else H, base=1.0) for i in range(3 * L)]

    def key(self, layer, k):
        return k * self.scales[3 * layer]

    def value(self, layer, v):
        return v * self.scales[3 * layer + 1]

    def hidden(self, layer, h):
        return h * self.scales[3 * layer + 2]


def measure(name, method, ratio=1):
    n = len(method.learned)
    method.head, method.head_bias = method.new(1000, C, D), method.new(1001, C)
    optimizer = torch.optim.AdamW([{"params": [p], "lr": 1e-2 * (ratio if i < n and i % 2 else 1)}
                                   for i, p in enumerate(method.learned)], eps=1e-6, weight_decay=0)
    numbers = []
    for step in range(4):
        optimizer.zero_grad()
        loss = method.loss()
        loss.backward()
        numbers.append(loss.item())
        if step == 0:
            grad = torch.cat([p.grad.flatten() for p in method.learned])
            numbers += [grad.norm().item(), (grad * torch.cos(torch.arange(len(grad)).double())).sum().item()]
        optimizer.step()
    print(f'    {{"{name}", {sum(p.numel() for p in method.learned)}, {{' +
          ", ".join(f"{x:.7g}" for x in numbers) + "}},")


def main():
    w = make_weights()
    names = list(w)
    last = ["norm"] + [name for name in names if name.startswith("1.")]
    measure("full", Some(w, names))
    measure("head", Some(w, []))
    measure("last", Some(w, last))
    measure("bitfit", Some(w, [name for name in names if w[name].dim() == 1]))
    measure("lora", Lora(w, TARGETS, ALPHA / RANK))
    measure("rslora", Lora(w, TARGETS, ALPHA / math.sqrt(RANK)))
    measure("loraplus", Lora(w, TARGETS, ALPHA / RANK), ratio=4)
    measure("dora", Lora(w, ["q", "v", "w2"], ALPHA / RANK, dora=True))
    measure("adapter", Serial(w, [0, 1]))
    measure("parallel", Parallel(w, [1]))
    measure("prefix", Prefix(w))
    measure("prefix_mlp", PrefixMlp(w))
    measure("prompt", Prompt(w))
    measure("ia3", Ia3(w))


if __name__ == "__main__":
    main()
