#!/usr/bin/python3
"""What `run_llama --option prompt|finetune|lora` does, done in PyTorch: to compare results, time and memory.

    python3 tools/torch_compare.py --self_test
    python3 tools/torch_compare.py --option lora --mode llama --lr 1e-3 --seeds 3 --train sst-train.txt ...
    python3 tools/torch_compare.py --shape 42M --token_ids ids.txt --max_batches 5      (time only)

A tool for development; nothing depends on it. It needs PyTorch (1.13 or later) and is as fast as the BLAS
that PyTorch calls: Debian's takes whichever libblas.so.3 it finds, and the plain one is very slow (OpenBLAS is
30 times faster). mode reference: LayerNorm, full attention, padding attended to, last position of the padded
row. mode llama: RMSNorm, causal, last real token (padding to its right is then seen by no token that counts).
"""
import argparse, copy, json, math, os, resource, struct, time
import torch
import torch.nn.functional as F
from torch import nn

BOS, PADDING, FIRST_PIECE = 1, 3, 259  # 0 unknown, 1 bos, 2 eos, 3 to 258 the bytes
SHAPES = {"42M": {"dim": 512, "hidden": 1376, "n_layers": 8, "n_heads": 8, "vocab_size": 32000, "max_seq_len": 1024}}


class Tokenizer:
    """llama2.c's tokenizer .bin: BPE that joins the neighbours whose joint piece scores highest."""

    def __init__(self, path):
        data = open(path, "rb").read()
        self.pieces, self.scores, self.pairs, at = [], [], {}, 4
        while at < len(data):
            score, n = struct.unpack_from("<fi", data, at)
            self.pieces.append(data[at + 8:at + 8 + n].decode("utf-8", "surrogateescape"))
            self.scores.append(score)
            at += 8 + n
        self.ids = {piece: i for i, piece in reversed(list(enumerate(self.pieces))) if i >= FIRST_PIECE}

    def pair(self, a, b):
        """Score and id of the piece that two neighbours make; (-inf, -1) where there is none."""
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
            for j in (i - 1, i):
                if 0 <= j < len(ids) - 1:
                    joints[j] = self.pair(ids[j], ids[j + 1])
                    scores[j] = joints[j][0]
        return [BOS] * bos + ids


class Rows:
    """One data set: labels, sentences (bytes), and ids, which are cut to `most`."""

    def __init__(self, labels, sentences, ids):
        self.labels, self.sentences, self.ids = labels, sentences, ids

    @classmethod
    def read(cls, path, tokenizer, suffix, most):
        """Lines of "label ||| sentence". A suffix that does not fit shortens the sentence before it."""
        rows = cls([], [], [])
        for line in filter(None, open(path, "rb").read().replace(b"\r\n", b"\n").split(b"\n")):
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

    @classmethod
    def read_ids(cls, path):
        """Lines of "label id id id ..."."""
        lines = [list(map(int, line.split())) for line in open(path)]
        return cls([line[0] for line in lines], [b""] * len(lines), [line[1:] for line in lines])


class Norm(nn.Module):
    """RMSNorm, or LayerNorm with a bias of 0 to begin with."""

    def __init__(self, dim, layer):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if layer else None

    def forward(self, x):
        if self.bias is not None:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.weight


class Linear(nn.Linear):
    """x W^T, and with LoRA + alpha / rank x A^T B^T."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out, bias=False)
        self.scale = 0

    def add_lora(self, rank, alpha):
        """A is random, B is 0."""
        self.lora_A = nn.Parameter(torch.randn(rank, self.in_features) * 0.02)
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x):
        y = F.linear(x, self.weight)
        return y + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B) if self.scale else y


class Layer(nn.Module):
    """Attention and SwiGLU; the names are the checkpoint's."""

    def __init__(self, dim, hidden, n_heads, n_kv_heads, reference):
        super().__init__()
        kv = dim // n_heads * n_kv_heads
        self.n_heads, self.n_kv_heads, self.causal = n_heads, n_kv_heads, not reference
        self.attention, self.feed_forward = nn.Module(), nn.Module()
        for name, n_out in ("query", dim), ("key", kv), ("value", kv), ("output", dim):
            setattr(self.attention, "compute_" + name, Linear(dim, n_out))
        for name, n_in, n_out in ("w1", dim, hidden), ("w2", hidden, dim), ("w3", dim, hidden):
            setattr(self.feed_forward, name, Linear(n_in, n_out))
        self.attention_norm, self.ffn_norm = Norm(dim, reference), Norm(dim, reference)

    def heads(self, x, n, rotation=None):
        """(B, T, n D) to (B, n, T, D), adjacent pairs rotated by their position (RoPE)."""
        x = x.unflatten(-1, (n, -1)).transpose(1, 2)
        if rotation is not None:
            (cos, sin), (even, odd) = rotation, (x[..., 0::2], x[..., 1::2])
            x = torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
        return x.repeat_interleave(self.n_heads // n, 1) if n < self.n_heads else x

    def forward(self, x, rotation):
        a, f = self.attention, self.feed_forward
        h = self.attention_norm(x)
        q = self.heads(a.compute_query(h), self.n_heads, rotation)
        k = self.heads(a.compute_key(h), self.n_kv_heads, rotation)
        v = self.heads(a.compute_value(h), self.n_kv_heads)
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        if self.causal:
            scores += torch.full(scores.shape[-2:], -math.inf).triu(1)
        x = x + a.compute_output((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        return x + f.w2(F.silu(f.w1(h)) * f.w3(h))


class Llama(nn.Module):
    """tokens (B, T) to hidden states (B, T, dim) after the last norm. head: a classifier, where there are classes."""

    def __init__(self, reference, vocab_size, dim, hidden, n_layers, n_heads, n_kv_heads=None, max_seq_len=512, **_):
        super().__init__()
        self.max_seq_len, self.reference = max_seq_len, reference
        self.tok_embeddings = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(
            Layer(dim, hidden, n_heads, n_kv_heads or n_heads, reference) for _ in range(n_layers))
        self.norm = Norm(dim, reference)
        self.head = None
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
        """A classifier; with lora = (rank, alpha) only that and the adapters on attention are trained."""
        if lora:
            self.requires_grad_(False)
            for layer in self.layers:
                for matrix in layer.attention.children():
                    matrix.add_lora(*lora)
        self.head = nn.Linear(self.norm.weight.numel(), n_classes)

    def forward(self, tokens):
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x, [table[:tokens.shape[1]] for table in self.rotation])
        return self.norm(x)

    def last_hidden(self, ids):
        """(B, dim): of the last position of each padded row in mode reference, else of its last token."""
        hidden = self(padded(ids))
        last = [-1 if self.reference else len(row) - 1 for row in ids]
        return hidden[torch.arange(len(ids)), last]

    def log_p(self, hidden):
        """(..., dim) to (..., vocab_size): log-probabilities of the next token."""
        return F.linear(hidden, self.tok_embeddings.weight).log_softmax(-1)

    def classify(self, ids, dropout=0.0):
        """(B, n_classes): log-probabilities of the classes."""
        return self.head(F.dropout(self.last_hidden(ids), dropout, dropout > 0)).log_softmax(-1)


def padded(ids):
    """(B, T), filled up at the right."""
    longest = max(map(len, ids))
    return torch.tensor([row + [PADDING] * (longest - len(row)) for row in ids])


class AdamW:
    """Both bias corrections folded into the step size, eps added to the uncorrected sqrt(v), decay at the end."""

    def __init__(self, parameters, lr, decay=0.0, eps=1e-6):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.lr, self.decay, self.eps, self.t = lr, decay, eps, 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]

    @torch.no_grad()
    def step(self):
        """Also forgets the gradients."""
        self.t += 1
        size = self.lr * math.sqrt(1 - 0.999 ** self.t) / (1 - 0.9 ** self.t)
        for p, (m, v) in zip(self.parameters, self.moments):
            m.mul_(0.9).add_(p.grad, alpha=0.1)
            v.mul_(0.999).addcmul_(p.grad, p.grad, value=0.001)
            p.addcdiv_(m, v.sqrt().add_(self.eps), value=-size)
            if self.decay:
                p.mul_(1 - self.lr * self.decay)
            p.grad = None


class Clock:
    """Counts the seconds and tokens of the batches passed to it, and says them."""

    def __init__(self):
        self.seconds, self.real, self.padded = 0.0, 0, 0

    def run(self, ids, work):
        began = time.perf_counter()
        result = work()
        self.seconds += time.perf_counter() - began
        self.real += sum(map(len, ids))
        self.padded += len(ids) * max(map(len, ids))
        return result

    def say(self, what):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{what}: {self.seconds:.2f} s, {self.real} tokens, {self.padded} with padding, "
              f"{self.real / self.seconds:.0f} and {self.padded / self.seconds:.0f} tokens/s, "
              f"peak memory {peak:.0f} MiB", flush=True)


def measure(rows, predicted):
    """Accuracy and macro F1 over the classes that occur in truth or prediction; label -1 is not known."""
    known = [(t, p) for t, p in zip(rows.labels, predicted) if t >= 0]
    f1 = [2 * known.count((c, c)) / sum((t == c) + (p == c) for t, p in known) for c in set(sum(known, ()))]
    return sum(t == p for t, p in known) / max(1, len(known)), sum(f1) / max(1, len(f1))


@torch.no_grad()
def classify_all(model, rows, size):
    """The predicted class of each row, in batches in the rows' order."""
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
    optimizer, best = AdamW(model.parameters(), args.lr), -1
    size, epochs, n = args.batch_size, args.epochs, len(train.ids)
    for epoch in range(epochs):
        order, clock, losses = torch.randperm(n).tolist(), Clock(), []
        for at in range(0, n, size)[:args.max_batches]:
            ids, labels = zip(*((train.ids[i], train.labels[i]) for i in order[at:at + size]))
            losses.append(clock.run(ids, lambda: train_batch(
                model, optimizer, ids, labels, size, args.hidden_dropout_prob)))
        clock.say(f"epoch {epoch}: training")
        loss = sum(losses) / len(losses)
        if args.max_batches:
            continue
        (on_train, _), (accuracy, f1) = [measure(rows, classify_all(model, rows, size)) for rows in (train, dev)]
        if accuracy > best:
            best, state = accuracy, copy.deepcopy(model.state_dict())
        print(f"epoch {epoch}: train loss :: {loss:.3f}, train acc :: {on_train:.3f}, "
              f"dev acc :: {accuracy:.3f}, dev f1 :: {f1:.3f}", flush=True)
    if not args.max_batches:
        model.load_state_dict(state)


def question(names):
    """" Is this movie awful, bad, or good? This movie is ", as bytes."""
    end = " or " if len(names) == 2 else ", or "
    return f" Is this movie {', '.join(names[:-1])}{end}{names[-1]}? This movie is ".encode()


def likelihoods(model, batch):
    """log p(label | text) of each label of each text; batch: for each text the ids of text + label. A row that
    begins another one is not run: rows that share a beginning share its hidden states."""
    rows, places = [], []
    for ids in sorted((ids[:-1] for choices in batch for ids in choices), key=len, reverse=True):
        if not any(row[:len(ids)] == ids for row in rows):
            rows.append(ids)
    hidden = model(padded(rows))
    scores = torch.zeros(len(batch), len(batch[0]))
    for i, choices in enumerate(batch):
        shared = len(os.path.commonprefix([ids[:-1] for ids in choices]))
        for j, ids in enumerate(choices):
            row = next(r for r, row in enumerate(rows) if row[:len(ids) - 1] == ids[:-1])
            log_p = model.log_p(hidden[row, shared - 1:len(ids) - 1])
            scores[i, j] = log_p.gather(-1, torch.tensor(ids[shared:])[:, None]).sum()
    return scores


def prompt_batch(model, rows, at, size, tokenizer, names, label_ids):
    """(B, n_labels) scores. mode reference: the sum of the log-probabilities of all of a label's tokens at the
    one next position; mode llama: the label's log-likelihood by the chain rule."""
    ids, sentences = rows.ids[at:at + size], rows.sentences[at:at + size]
    if model.reference:
        log_p = model.log_p(model.last_hidden(ids))
        return torch.stack([log_p[:, label].sum(-1) for label in label_ids], -1)
    if not tokenizer:
        return likelihoods(model, [[row + label for label in label_ids] for row in ids])
    suffix = question(names)
    return likelihoods(model, [[tokenizer.encode(s + suffix + name.encode(), True) for name in names]
                               for s in sentences])


@torch.no_grad()
def prompt_all(args, model, rows, tokenizer, names, label_ids, what):
    """The predicted label of each row."""
    predicted, clock, size = [], Clock(), args.batch_size
    for at in range(0, len(rows.ids), size)[:args.max_batches]:
        scores = clock.run(rows.ids[at:at + size], lambda: prompt_batch(
            model, rows, at, size, tokenizer, names, label_ids))
        predicted += scores.argmax(-1).tolist()
    clock.say(f"{what}: prompting")
    return predicted


def run(args, seed):
    """One run with one seed; returns the accuracies on dev and test."""
    torch.manual_seed(seed)
    reference, prompting = args.mode == "reference", args.option == "prompt"
    model = Llama(reference, **SHAPES[args.shape]) if args.shape else Llama.load(args.model, reference)
    if args.token_ids:
        rows = Rows.read_ids(args.token_ids)
        if prompting:
            prompt_all(args, model, rows, None, None, [[FIRST_PIECE + c] for c in range(5)], args.token_ids)
        else:
            finetune(args, model, max(rows.labels) + 1, rows, None)
        return None
    names, tokenizer = json.load(open(args.label_names)), Tokenizer(args.tokenizer)
    most = min(model.max_seq_len, args.max_sentence_len or model.max_seq_len)
    most, suffix = (most - 8 * (not reference), question(names)) if prompting else (most, b"")
    dev, test = [Rows.read(path, tokenizer, suffix, most) for path in (args.dev, args.test)]
    if not prompting:
        finetune(args, model, len(names), Rows.read(args.train, tokenizer, suffix, most), dev)
    accuracies, label_ids = [], [tokenizer.encode(name.encode()) for name in names]
    for what, rows, path in ("dev", dev, args.dev_out), ("test", test, args.test_out):
        predicted = (prompt_all(args, model, rows, tokenizer, names, label_ids, what) if prompting
                     else [] if args.max_batches else classify_all(model, rows, args.batch_size))
        if not args.max_batches:
            accuracies.append(measure(rows, predicted)[0])
            print("%s acc :: %.3f, f1 :: %.3f" % (what, *measure(rows, predicted)), flush=True)
        if path:
            with open(path, "wb") as file:
                file.writelines(b"%d ||| %s\n" % line for line in zip(predicted, rows.sentences))
    return accuracies or None


def self_test(shared="../shared"):
    """Against numbers that other programs computed; raises AssertionError where they differ."""
    tokenizer = Tokenizer(f"{shared}/models/tok512.bin")
    for line in map(json.loads, open(f"{shared}/reference/tokenizer_tok512.jsonl")):
        assert tokenizer.encode(line["text"].encode()) == line["ids"], line
    close = lambda a, b, tolerance: torch.testing.assert_close(a.detach(), b, atol=tolerance, rtol=tolerance)
    path, expected = f"{shared}/models/stories260K.pt", torch.load(f"{shared}/reference/forward.pt")
    for name in "rms_causal", "rms_full", "layer_causal", "layer_full":
        model = Llama.load(path, name.startswith("layer"))
        for layer in model.layers:
            layer.causal = name.endswith("causal")
        hidden = model(expected["tokens"].long())
        close(hidden, expected[name + "_hidden"], 1e-4)
        close(F.linear(hidden, model.tok_embeddings.weight), expected[name + "_logits"], 1e-4)
    rows = Rows.read(f"{shared}/data/sst-train.txt", tokenizer, b"", 512)
    for option, mode in [(o, m) for o in ("finetune", "lora") for m in ("layer_full", "rms_causal")]:
        expected = torch.load(f"{shared}/reference/classify_{option}_{mode}.pt")
        model = Llama.load(path, mode == "layer_full")
        model.add_head(5, (4, 1) if option == "lora" else None)
        initial = {n[5:]: x for n, x in expected.items() if n.startswith("init.")}
        model.load_state_dict(dict(initial, **{f"head.{n}": expected[f"head_{n}"] for n in ("weight", "bias")}), False)
        batches = [padded(rows.ids[at:at + 8]).tolist() for at in range(0, 64, 8)]  # the last position, in both modes
        assert torch.equal(torch.tensor(batches[0]), expected["first_batch_tokens"])
        close(model.classify(batches[0]), expected["first_batch_log_probs"], 1e-4)
        optimizer = AdamW(model.parameters(), 1e-3)
        losses = [train_batch(model, optimizer, ids, rows.labels[8 * i:8 * i + 8], 8, 0)
                  for i, ids in enumerate(batches)]
        close(torch.tensor(losses), torch.as_tensor(expected["losses"], dtype=torch.float32), 1e-4)
        after = {"head." + n[5:-6]: x for n, x in expected.items() if n.startswith("head_") and n.endswith("_after")}
        after.update((n[6:], x) for n, x in expected.items() if n.startswith("after."))
        for name, x in after.items():
            close(model.state_dict()[name], x, 1e-3)
        print(f"{option}, {mode}: losses {', '.join('%.4f' % loss for loss in losses)}")
    print("self test: all as it should be")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = "../shared"
    for name, default in [
            ("pretrained-model-path", f"{shared}/models/stories260K.pt"), ("tokenizer", f"{shared}/models/tok512.bin"),
            ("train", f"{shared}/data/sst-train.txt"), ("dev", f"{shared}/data/sst-dev.txt"),
            ("test", f"{shared}/data/sst-test.txt"), ("label-names", f"{shared}/data/sst-label-mapping.json"),
            ("dev_out", None), ("test_out", None), ("max_sentence_len", 0), ("epochs", 5), ("batch_size", 8),
            ("hidden_dropout_prob", 0.3), ("lr", 2e-5), ("lora_rank", 4), ("lora_alpha", 1.0), ("seed", 1337),
            ("seeds", 1), ("threads", 1), ("token_ids", None), ("max_batches", None)]:
        kind = int if name == "max_batches" else type(default) if default is not None else str
        parser.add_argument("--" + name, default=default, type=kind)
    parser.add_argument("--option", choices=["prompt", "finetune", "lora"], default="finetune")
    parser.add_argument("--mode", choices=["reference", "llama"], default="reference")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape, no checkpoint")
    parser.add_argument("--self_test", action="store_true", help="compare with the reference numbers, and end")
    args = parser.parse_args()
    args.model = args.pretrained_model_path
    torch.set_num_threads(args.threads)
    if args.self_test:
        return self_test()
    accuracies = []
    for seed in range(args.seed, args.seed + (args.seeds if args.option != "prompt" else 1)):
        if args.seeds > 1:
            print("seed", seed)
        accuracies.append(run(args, seed))
    for what, all_seeds in zip(("dev", "test"), zip(*accuracies) if args.seeds > 1 and accuracies[0] else []):
        mean = sum(all_seeds) / len(all_seeds)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in all_seeds) / len(all_seeds))
        print(f"{what} acc over {len(all_seeds)} seeds :: {mean:.3f} ({deviation:.3f})")


if __name__ == "__main__":
    main()
