"""Write the other files of this folder anew: tokens of the prompts in `tokens.json`, and the vocabulary for them.

Needs open_clip_torch 2.24.0; the tests do not. `vocab.json` and `merges.txt` have the form that transformers reads.
They hold all bytes, with which any text can be written, and what the prompts need beyond; ids are the true ones.
"""

import json
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer, get_pairs


FOLDER = Path(__file__).parent


def merges_applied(tokenizer: SimpleTokenizer, word: str) -> set[tuple[str, str]]:
    """All that happen on the way from bytes to tokens; those of a vocabulary with only these are the same."""
    parts, applied = (*word[:-1], word[-1] + "</w>"), set()
    while len(parts) > 1:
        pair = min(get_pairs(parts), key=lambda pair: tokenizer.bpe_ranks.get(pair, float("inf")))
        if pair not in tokenizer.bpe_ranks:
            break
        applied.add(pair)
        joined = []
        for part in parts:
            if joined and (joined[-1], part) == pair:
                joined[-1] += part
            else:
                joined.append(part)
        parts = tuple(joined)
    return applied


def main() -> None:
    tokenizer = SimpleTokenizer()
    prompts = [golden["prompt"] for golden in json.loads((FOLDER / "tokens.json").read_text())]
    applied = set()
    for prompt in prompts:
        for word in tokenizer.pat.findall(tokenizer.clean_fn(prompt)):
            applied |= merges_applied(tokenizer, "".join(tokenizer.byte_encoder[b] for b in word.encode()))
    merges = sorted(applied, key=tokenizer.bpe_ranks.get)
    tokens = [*list(tokenizer.encoder)[:512], *("".join(pair) for pair in merges)]
    vocab = {token: tokenizer.encoder[token] for token in tokens}
    vocab |= {"<|startoftext|>": tokenizer.sot_token_id, "<|endoftext|>": tokenizer.eot_token_id}
    (FOLDER / "vocab.json").write_text(json.dumps(vocab, indent=0) + "\n")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (FOLDER / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    rows = []
    for prompt, tokens in zip(prompts, tokenizer(prompts).tolist(), strict=True):
        end = tokens.index(tokenizer.eot_token_id) + 1  # zeros follow, up to 77
        rows.append(json.dumps({"prompt": prompt, "tokens": tokens[:end]}))
    (FOLDER / "tokens.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    main()
