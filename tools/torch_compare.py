#!/usr/bin/python3
"""What `run_llama --option prompt|finetune|lora` does, done in PyTorch: to compare results, time and memory.

    python3 tools/torch_compare.py --self_test
    python3 tools/torch_compare.py --option lora --mode llama --lr 1e-3 --batch_size 80 --seeds 3
    python3 tools/torch_compare.py --shape 42M --token_ids ids.txt --max_batches 5      (time only)

A tool for development; nothing depends on it. It is as fast as the BLAS that PyTorch calls: Debian's takes
whichever libblas.so.3 it finds, and the plain one is some 30 times slower than OpenBLAS.

mode reference: LayerNorm, full attention, padding attended to, the last position of the padded row. mode llama:
RMSNorm, causal, the last token; padding is to its right, so no token that counts sees it.
Shapes: B rows, T positions.
"""
import argparse, copy, json, math, os, resource, struct, time
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

BOS, PADDING, FIRST_PIECE = 1, 3, 259  # 0 is unknown, 2 eos, 3 to 258 are the bytes
SHAPES = {"42M": {"vocab_size": 32000, "dim": 512, "hidden": 1376, "n_layers": 8, "n_heads": 8, "max_seq_len": 1024}}


# ---- data

class Tokenizer:
    """llama2.c's tokenizer .bin: BPE that joins the neighbors whose joint piece scores highest."""

    def __init__(self, path):
        data, at = open(path, "rb").read(), 4
        self.pieces, self.scores, self.pairs = [], [], {}
        while at < len(data):
            score, n = struct.unpack_from("<fi", data, at)
            self.pieces.append(data[at + 8:at + 8 + n].decode("utf-8", "surrogateescape"))
            self.scores.append(score)
            at += 8 + n
        self.ids = {self.pieces[i]: i for i in range(len(self.pieces) - 1, FIRST_PIECE - 1, -1)}

    def pair(self, a, b):
        """Score and id of the piece that two neighbors make; (-inf, -1) where there is none."""
        if (a, b) not in self.pairs:
            joint = self.ids.get(self.pieces[a] + self.pieces[b], -1) if min(a, b) >= FIRST_PIECE else -1
            self.pairs[a, b] = (self.scores[joint], joint) if joint >= 0 else (-math.inf, -1)
        return self.pairs[a, b]

    def encode(self, text, bos=False):
        """Ids of bytes: a space is put in front; a character that is no piece is spelled in bytes."""
        ids = []
        for c in (b" " + text if text else text).decode("utf-8", "surrogateescape"):
            ids += [self.ids[c]] if c in self.ids else [3 + b for b in c.encode("utf-8", "surrogateescape")]
        joints = [self.pair(a, b) for a, b in zip(ids, ids[1:])]
        scores = [score for score, _ in joints]
        while scores and max(scores) > -math.inf:
            i = scores.index(max(scores))  # the leftmost of the best
            ids[i:i + 2] = [joints[i][1]]
            del joints[i], scores[i]
            for j in range(max(i - 1, 0), min(i + 1, len(scores))):
                joints[j] = self.pair(ids[j], ids[j + 1])
                scores[j] = joints[j][0]
        return [BOS] * bos + ids


def read_rows(path, tokenizer, suffix, most):
    """Labels, sentences and ids of "label ||| sentence" lines; a suffix that does not fit shortens the sentence."""
    rows = SimpleNamespace(labels=[], sentences=[], ids=[])
    for line in open(path, "rb").read().splitlines():
        label, sentence = line.split(b" ||| ", 1)
        sentence = kept = sentence.strip(b" \t")
        ids = tokenizer.encode(kept + suffix, True)
        while len(ids) > most and suffix and kept:
            kept = kept[:-(len(ids) - most)]
            ids = tokenizer.encode(kept + suffix, True)
        rows.labels.append(int(label))
        rows.sentences.append(kept if suffix else sentence)
        rows.ids.append(ids[:most])
    return rows


def read_ids(path):
    """The same of "label id id id ..." lines."""
    lines = [list(map(int, line.split())) for line in open(path)]
    return SimpleNamespace(labels=[line[0] for line in lines], ids=[line[1:] for line in lines])


def padded(ids):
    """(B, T), filled up at the right."""
    longest = max(map(len, ids))
    return torch.tensor([row + [PADDING] * (longest - len(row)) for row in ids])


# ---- the model; names are the checkpoint's

class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) * weight. (Mode reference: nn.LayerNorm, with a bias of 0 to begin with.)"""

    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Linear(nn.Linear):
    """x W^T, and with LoRA + alpha / rank x A^T B^T."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out, bias=False)
        self.scale = 0

    def add_lora(self, rank, alpha):
        self.lora_A = nn.Parameter(torch.randn(rank, self.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        y = F.linear(x, self.weight)
        return y + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B) if self.scale else y


class Layer(nn.Module):
    """Attention and SwiGLU."""

    def __init__(self, dim, hidden, n_heads, n_kv_heads, reference):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.causal = n_heads, n_kv_heads, not reference
        kv = dim // n_heads * n_kv_heads
        self.attention = nn.ModuleDict({"compute_query": Linear(dim, dim), "compute_key": Linear(dim, kv),
                                        "compute_value": Linear(dim, kv), "compute_output": Linear(dim, dim)})
        self.feed_forward = nn.ModuleDict(
            {"w1": Linear(dim, hidden), "w2": Linear(hidden, dim), "w3": Linear(dim, hidden)})
        self.attention_norm, self.ffn_norm = [nn.LayerNorm(dim) if reference else RMSNorm(dim) for _ in "af"]

    def heads(self, x, n, rotation=None):
        """(B, T, n D) to (B, n_heads, T, D), adjacent pairs rotated by their position (RoPE)."""
        x = x.unflatten(-1, (n, -1)).transpose(1, 2)
        if rotation is not None:
            (cos, sin), even, odd = rotation, x[..., 0::2], x[..., 1::2]
            x = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
        return x.repeat_interleave(self.n_heads // n, 1) if n < self.n_heads else x

    def forward(self, x, rotation):
        a, f, h = self.attention, self.feed_forward, self.attention_norm(x)
        q = self.heads(a["compute_query"](h), self.n_heads, rotation)
        k = self.heads(a["compute_key"](h), self.n_kv_heads, rotation)
        v = self.heads(a["compute_value"](h), self.n_kv_heads)
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        if self.causal:
            scores += torch.full(scores.shape[-2:], -math.inf).triu(1)
        x = x + a["compute_output"]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        return x + f["w2"](F.silu(f["w1"](h)) * f["w3"](h))


class Llama(nn.Module):
    """tokens (B, T) to hidden states (B, T, dim) after the last norm."""

    def __init__(self, reference, vocab_size, dim, hidden, n_layers, n_heads, n_kv_heads=None, max_seq_len=512, **_):
        super().__init__()
        self.max_seq_len, self.reference = max_seq_len, reference
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(
            Layer(dim, hidden, n_heads, n_kv_heads or n_heads, reference) for _ in range(n_layers))
        self.norm = nn.LayerNorm(dim) if reference else RMSNorm(dim)
        for matrix in (p for p in self.parameters() if p.dim() > 1):
            nn.init.normal_(matrix, std=0.02)
        frequency = 10000 ** (-torch.arange(0, dim // n_heads, 2) / (dim // n_heads))
        angle = torch.outer(torch.arange(max_seq_len), frequency)
        self.rotation = angle.cos(), angle.sin()

    @classmethod
    def load(cls, path, reference):
        checkpoint = torch.load(path, map_location="cpu")
        weights = {name: w.float() for name, w in checkpoint["model"].items() if name != "output.weight"}  # tied
        model = cls(reference, hidden=len(weights["layers.0.feed_forward.w1.weight"]), **checkpoint["model_args"])
        missing, unknown = model.load_state_dict(weights, strict=False)
        assert not unknown and all(name.endswith("norm.bias") for name in missing), (missing, unknown)
        return model

    def add_head(self, n_classes, lora=None):
        """A classifier; with lora = (rank, alpha) only it and adapters on attention's matrices are trained."""
        if lora:
            self.requires_grad_(False)
            for matrix in (m for layer in self.layers for m in layer.attention.values()):
                matrix.add_lora(*lora)
        self.head = nn.Linear(self.norm.weight.numel(), n_classes)

    def forward(self, tokens):
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, [table[:tokens.shape[1]] for table in self.rotation])
        return self.norm(x)

    def last_hidden(self, ids):
        """(B, dim): at the last position of the padded rows in mode reference, else at each row's last token."""
        return self(padded(ids))[range(len(ids)), [-1 if self.reference else len(row) - 1 for row in ids]]

    def classify(self, ids, dropout=0.0):
        """(B, n_classes): log-probabilities of the classes."""
        return self.head(F.dropout(self.last_hidden(ids), dropout, dropout > 0)).log_softmax(-1)

    def log_p(self, hidden):
        """(..., dim) to (..., vocab_size): log-probabilities of the next token."""
        return F.linear(hidden, self.tok_embeddings.weight).log_softmax(-1)


# ---- training

class AdamW:
    """Both bias corrections are in the step size, and eps is added to the uncorrected sqrt(v); no decay."""

    def __init__(self, parameters, lr):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.lr, self.t = lr, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]

    @torch.no_grad()
    def step(self):
        """Also forgets the gradients."""
        self.t += 1
        size = self.lr * math.sqrt(1 - 0.999 ** self.t) / (1 - 0.9 ** self.t)
        for p, (m, v) in zip(self.parameters, self.moments):
            m.mul_(0.9).add_(p.grad, alpha=0.1)
            v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            p.addcdiv_(m, v.sqrt().add_(1e-6), value=-size)
            p.grad = None


class Clock:
    """Counts the seconds and tokens of the batches passed to it, and says them."""

    def __init__(self):
        self.seconds, self.processor, self.real, self.padded = 0.0, 0.0, 0, 0

    def run(self, ids, work):
        began, processor = time.perf_counter(), time.process_time()
        result = work()
        self.seconds += time.perf_counter() - began
        self.processor += time.process_time() - processor
        self.real += sum(map(len, ids))
        self.padded += len(ids) * max(map(len, ids))
        return result

    def say(self, what):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{what}: {self.seconds:.2f} s, {self.real} real tokens, {self.padded} padded, "
              f"{self.real / self.seconds:.0f} and {self.padded / self.seconds:.0f} tokens/s, "
              f"peak memory {peak:.0f} MiB, {self.processor:.2f} s of processor time", flush=True)


def measure(rows, predicted):
    """Accuracy and macro F1 over the classes that occur in truth or prediction; label -1 is not known."""
    known = [(t, p) for t, p in zip(rows.labels, predicted) if t >= 0]
    f1 = [2 * known.count((c, c)) / sum((t == c) + (p == c) for t, p in known) for c in {c for k in known for c in k}]
    return sum(t == p for t, p in known) / max(1, len(known)), sum(f1) / max(1, len(f1))


@torch.no_grad()
def predict(model, rows, size):
    """The class of each row, in batches in the rows' order."""
    batches = (rows.ids[at:at + size] for at in range(0, len(rows.ids), size))
    return [label for ids in batches for label in model.classify(ids).argmax(-1).tolist()]


def train_batch(model, optimizer, ids, labels, size, dropout):
    """One step; returns the loss: the summed negative log-likelihood / batch_size."""
    loss = F.nll_loss(model.classify(ids, dropout), torch.tensor(labels), reduction="sum") / size
    loss.backward()
    optimizer.step()
    return loss.item()


def finetune(args, model, n_classes, train, dev):
    """Trains, and leaves the model as it was after the epoch with the best accuracy on dev."""
    model.add_head(n_classes, (args.lora_rank, args.lora_alpha) if args.option == "lora" else None)
    optimizer, best, size = AdamW(model.parameters(), args.lr), -1, args.batch_size
    for epoch in range(args.epochs):
        order, clock, losses = torch.randperm(len(train.ids)).tolist(), Clock(), []
        for at in range(0, len(order), size)[:args.max_batches]:
            ids, labels = zip(*((train.ids[i], train.labels[i]) for i in order[at:at + size]))
            losses.append(clock.run(ids, lambda: train_batch(
                model, optimizer, ids, labels, size, args.hidden_dropout_prob)))
        clock.say(f"epoch {epoch}: training")
        if args.max_batches:
            continue
        (on_train, _), (on_dev, f1) = [measure(rows, predict(model, rows, size)) for rows in (train, dev)]
        if on_dev > best:
            best, state = on_dev, copy.deepcopy(model.state_dict())
        print(f"epoch {epoch}: train loss :: {sum(losses) / len(losses):.3f}, train acc :: {on_train:.3f}, "
              f"dev acc :: {on_dev:.3f}, dev f1 :: {f1:.3f}", flush=True)
    if best >= 0:
        model.load_state_dict(state)


# ---- prompting

def question(names):
    """" Is this movie awful, bad, or good? This movie is ", as bytes."""
    end = " or " if len(names) == 2 else ", or "
    return f" Is this movie {', '.join(names[:-1])}{end}{names[-1]}? This movie is ".encode()


def next_scores(model, ids, labels):
    """(B, n_labels): the sum of the log-probabilities of all of a label's tokens at the one next position."""
    log_p = model.log_p(model.last_hidden(ids))
    return torch.stack([log_p[:, label].sum(-1) for label in labels], -1)


def likelihoods(model, batch):
    """(B, n_labels): log p(label | text) by the chain rule; batch: for each text the ids of text + label, for each
    label. Rows that begin another row of their text are not run: the states are the same."""
    rows, wanted, scores = [], [], torch.zeros(len(batch), len(batch[0]))
    for i, choices in enumerate(batch):
        shared, first = len(os.path.commonprefix([ids[:-1] for ids in choices])), len(rows)
        for j, ids in sorted(enumerate(choices), key=lambda choice: -len(choice[1])):
            row = next((r for r in range(first, len(rows)) if rows[r][:len(ids) - 1] == ids[:-1]), len(rows))
            rows += [ids[:-1]] if row == len(rows) else []
            wanted += [(i, j, (row, at - 1), ids[at]) for at in range(shared, len(ids))]
    places = sorted({place for _, _, place, _ in wanted})
    log_p = model.log_p(model(padded(rows))[tuple(zip(*places))])
    for i, j, place, token in wanted:
        scores[i, j] += log_p[places.index(place), token]
    return scores


@torch.no_grad()
def prompt(args, model, rows, labels, choices, what):
    """The label of each row. labels: the ids of each; choices: for mode llama, the ids of text + label."""
    predicted, clock, size = [], Clock(), args.batch_size
    for at in range(0, len(rows.ids), size)[:args.max_batches]:
        ids = rows.ids[at:at + size]
        scores = clock.run(ids, lambda: next_scores(model, ids, labels) if model.reference
                           else likelihoods(model, choices[at:at + size]))
        predicted += scores.argmax(-1).tolist()
    clock.say(f"{what}: prompting")
    return predicted


# ---- a run

def time_ids(args, model):
    """Time only, on ids from a file; as many labels of one token as SST-5 has."""
    rows, labels = read_ids(args.token_ids), [[FIRST_PIECE + i] for i in range(5)]
    if args.option != "prompt":
        return finetune(args, model, max(rows.labels) + 1, rows, None)
    return prompt(args, model, rows, labels, [[row + label for label in labels] for row in rows.ids], "ids")


def run(args, seed):
    """One run with one seed; returns the accuracies on dev and test, where they are measured."""
    torch.manual_seed(seed)
    reference, prompting, accuracies = args.mode == "reference", args.option == "prompt", []
    path = args.pretrained_model_path
    model = Llama(reference, **SHAPES[args.shape]) if args.shape else Llama.load(path, reference)
    if args.token_ids:
        return time_ids(args, model)
    names, tokenizer = json.load(open(args.label_names)), Tokenizer(args.tokenizer)
    most = min(model.max_seq_len, args.max_sentence_len or model.max_seq_len)
    suffix, most = (question(names), most - 8 * (not reference)) if prompting else (b"", most)
    dev, test = [read_rows(file, tokenizer, suffix, most) for file in (args.dev, args.test)]
    if not prompting:
        finetune(args, model, len(names), read_rows(args.train, tokenizer, suffix, most), dev)
    labels = [tokenizer.encode(name.encode()) for name in names]
    for what, rows, path in ("dev", dev, args.dev_out), ("test", test, args.test_out):
        if prompting:
            choices = None if reference else [[tokenizer.encode(s + suffix + name.encode(), True)
                                               for name in names] for s in rows.sentences]
            predicted = prompt(args, model, rows, labels, choices, what)
        if args.max_batches:
            continue
        predicted = predicted if prompting else predict(model, rows, args.batch_size)
        accuracies.append(measure(rows, predicted))
        print("%s acc :: %.3f, f1 :: %.3f" % (what, *accuracies[-1]), flush=True)
        if path:
            with open(path, "wb") as file:
                file.writelines(b"%d ||| %s\n" % line for line in zip(predicted, rows.sentences))
    return [accuracy for accuracy, _ in accuracies]


def close(a, b, tolerance):
    """AssertionError where two tensors differ."""
    torch.testing.assert_close(a.detach(), b, atol=tolerance, rtol=tolerance)


def test_classifier(option, mode, path, expected, rows):
    """Eight steps as recorded: losses, head and adapters. Both modes read the last position of the padded row."""
    model, batches = Llama.load(path, mode == "layer_full"), [rows.ids[at:at + 8] for at in range(0, 64, 8)]
    batches = [padded(ids).tolist() for ids in batches]
    model.add_head(5, (4, 1) if option == "lora" else None)
    given = {name[5:]: x for name, x in expected.items() if name.startswith("init.")}
    given.update({"head.weight": expected["head_weight"], "head.bias": expected["head_bias"]})
    model.load_state_dict(given, strict=False)
    close(torch.tensor(batches[0]), expected["first_batch_tokens"], 0)
    close(model.classify(batches[0]), expected["first_batch_log_probs"], 1e-4)
    optimizer = AdamW(model.parameters(), 1e-3)
    losses = [train_batch(model, optimizer, ids, rows.labels[8 * i:8 * i + 8], 8, 0)
              for i, ids in enumerate(batches)]
    close(torch.tensor(losses), torch.as_tensor(expected["losses"], dtype=torch.float32), 1e-4)
    after = {name[6:]: x for name, x in expected.items() if name.startswith("after.")}
    after.update({"head.weight": expected["head_weight_after"], "head.bias": expected["head_bias_after"]})
    for name, x in after.items():
        close(model.state_dict()[name], x, 1e-3)


@torch.no_grad()
def test_forward(path, expected):
    """Hidden states and logits, of both norms with and without causal mask."""
    for name in "rms_causal", "rms_full", "layer_causal", "layer_full":
        model = Llama.load(path, name.startswith("layer"))
        for layer in model.layers:
            layer.causal = name.endswith("causal")
        hidden = model(expected["tokens"].long())
        close(hidden, expected[name + "_hidden"], 1e-4)
        close(F.linear(hidden, model.tok_embeddings.weight), expected[name + "_logits"], 1e-4)


def self_test(shared="../shared"):
    """Against numbers that other programs computed; raises AssertionError where they differ."""
    path, tokenizer = f"{shared}/models/stories260K.pt", Tokenizer(f"{shared}/models/tok512.bin")
    for line in map(json.loads, open(f"{shared}/reference/tokenizer_tok512.jsonl")):
        assert tokenizer.encode(line["text"].encode()) == line["ids"], line
    test_forward(path, torch.load(f"{shared}/reference/forward.pt"))
    rows = read_rows(f"{shared}/data/sst-train.txt", tokenizer, b"", 512)
    for name in "finetune_layer_full", "finetune_rms_causal", "lora_layer_full", "lora_rms_causal":
        expected = torch.load(f"{shared}/reference/classify_{name}.pt")
        test_classifier(*name.split("_", 1), path, expected, rows)
    names = json.load(open(f"{shared}/data/sst-label-mapping.json"))
    rows = read_rows(f"{shared}/data/sst-dev.txt", tokenizer, question(names), 512)
    labels, model = [tokenizer.encode(name.encode()) for name in names], Llama.load(path, True)
    scores = torch.cat([next_scores(model, rows.ids[at:at + 10], labels) for at in range(0, 40, 10)])
    close(scores, torch.load(f"{shared}/reference/zeroshot_sst_dev40.pt")["layer_full_scores"], 1e-3)
    print("tokenizer, forward, finetune, lora, prompt: as they should be")


def arguments():
    """The command line's; those of run_llama mean the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
            "pretrained-model-path": "../shared/models/stories260K.pt", "tokenizer": "../shared/models/tok512.bin",
            "train": "../shared/data/sst-train.txt", "dev": "../shared/data/sst-dev.txt",
            "test": "../shared/data/sst-test.txt", "label-names": "../shared/data/sst-label-mapping.json",
            "dev_out": "", "test_out": "", "max_sentence_len": 0, "epochs": 5, "batch_size": 8,
            "hidden_dropout_prob": 0.3, "lr": 2e-5, "lora_rank": 4, "lora_alpha": 1.0, "seed": 1337, "seeds": 1,
            "threads": 1}.items():
        parser.add_argument("--" + name, default=default, type=type(default), help=f"({default})")
    parser.add_argument("--option", choices=["prompt", "finetune", "lora"], default="finetune")
    parser.add_argument("--mode", choices=["reference", "llama"], default="reference")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape, no checkpoint")
    parser.add_argument("--token_ids", help="lines of \"label id id ...\" to train on or to prompt with")
    parser.add_argument("--max_batches", type=int, help="of each epoch or set; then only the time is told")
    parser.add_argument("--self_test", action="store_true", help="compare with ../shared/reference, and end")
    return parser.parse_args()


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.self_test:
        return self_test()
    n, results = 1 if args.option == "prompt" else args.seeds, []
    for seed in range(args.seed, args.seed + n):
        if n > 1:
            print(f"seed {seed}")
        results.append(run(args, seed))
    for what, x in zip(("dev", "test"), zip(*results) if n > 1 and results[0] else []):
        mean = sum(x) / n
        deviation = math.sqrt(sum((y - mean) ** 2 for y in x) / n)
        print(f"{what} acc over {n} seeds :: {mean:.3f} ({deviation:.3f})")


if __name__ == "__main__":
    main()
