"""`rushes preview CONFIG-FLAGS [--out FILE]`: one page of what the model sees.

Crops as they enter the model, with presentation times, tokens, masked tokens and labels, of the
first training batch; self-contained HTML.
"""

from __future__ import annotations

import base64
import html
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from rushes.configs.load import load_config
from rushes.configs.schema import RunConfig
from rushes.datasets.batch import Batch
from rushes.datasets.build import FrameSources, build_tokenizer, build_train_loader
from rushes.datasets.text import TextTokenizer
from rushes.distributed import World, run_main
from rushes.errors import ConfigError
from rushes.runner import output_folder

_STYLE = """body{font:14px sans-serif;margin:2em;max-width:1400px}figure{display:inline-block;
margin:2px}figcaption{font-size:11px;color:#555}img{height:96px}.middle img{height:192px}
.bad{color:#b00}mark{background:#fd6}section{border-top:1px solid #ccc;padding:.6em 0}"""


def main(argv: Sequence[str]) -> int:
    """Write the page for the run that `argv` describes; returns an exit code."""
    rest, out = list(argv), None
    if "--out" in rest:
        at = rest.index("--out")
        if at + 1 >= len(rest):
            raise ConfigError("--out: expected a file")
        out = Path(rest[at + 1])
        del rest[at : at + 2]
    config = load_config(rest, "rushes preview")
    return run_main(lambda world: _preview(config, world, out), "cpu")


def _preview(config: RunConfig, world: World, out: Path | None) -> int:
    folder = output_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(config, world, folder / "tokenizer")
    sources = FrameSources(config, world)
    loader = build_train_loader(config, world, tokenizer, sources=sources)
    batch = loader.step(0)[0]
    reasons = {bad.id: f"{bad.detail} [{bad.reason}]" for bad in loader.bad}
    sources.close()
    if world.is_main:
        path = out or folder / "preview.html"
        path.write_text(page(batch, tokenizer, reasons), encoding="utf-8")
        print(path)  # noqa: T201
    return 0


def page(batch: Batch, tokenizer: TextTokenizer, reasons: dict[str, str]) -> str:
    """The page of one batch.

    Args:
        reasons: why samples that are not valid failed, by id.
    """
    sections = "\n".join(
        _section(batch, row, tokenizer, reasons.get(name, "")) for row, name in enumerate(batch.ids)
    )
    title = html.escape(f"{len(batch)} samples of {batch.dataset or 'the data'}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>\n{sections}\n</body></html>\n"
    )


def _section(batch: Batch, row: int, tokenizer: TextTokenizer, reason: str) -> str:
    parts = [f"<section><h2>{html.escape(batch.ids[row])}</h2>"]
    if not bool(batch.valid[row]):
        parts.append(f'<p class="bad">takes no part: {html.escape(reason)}</p>')
    else:
        parts += _clips(batch, row)
    for text in range(row * batch.num_texts, (row + 1) * batch.num_texts):
        parts.append(f"<p>{_words(batch, text, tokenizer)}</p>")
    if batch.labels is not None and batch.labels.numel() == len(batch):
        label = int(batch.labels[row])
        if label >= 0:
            parts.append(f"<p>label {label}</p>")
    return "\n".join([*parts, "</section>"])


def _clips(batch: Batch, row: int) -> list[str]:
    """Figures of all frames in time order, the high-resolution one larger; one line a clip."""
    shown = batch.high if batch.high is not None else batch.low
    assert shown is not None
    out = []
    for clip in range(shown.shape[1]):
        low = [] if batch.low is None else list(batch.low[row, clip])
        frames = [(frame, "") for frame in low]
        if batch.high is not None:
            frames.insert(len(low) // 2, (batch.high[row, clip], "middle"))
        times = [] if batch.times is None else batch.times[row, clip].tolist()
        if len(times) != len(frames):  # a tower that sees only the middle frame
            times = [float("nan")] * len(frames)
        figures = [_figure(f, kind, t) for (f, kind), t in zip(frames, times, strict=True)]
        out.append("<div>" + "".join(figures) + "</div>")
    return out


def _figure(frame: Tensor, kind: str, seconds: float) -> str:
    pixels = np.ascontiguousarray(frame.permute(1, 2, 0).numpy()[:, :, ::-1])  # H W C, BGR
    done, encoded = cv2.imencode(".jpg", pixels)
    assert done, "JPEG takes every uint8 picture"
    data = base64.b64encode(encoded.tobytes()).decode()
    size = f"{frame.shape[2]}x{frame.shape[1]}"
    return (
        f'<figure class="{kind}"><img alt="frame at {seconds:.3f} s" '
        f'src="data:image/jpeg;base64,{data}"><figcaption>{seconds:.3f} s, {size}</figcaption>'
        "</figure>"
    )


def _words(batch: Batch, text: int, tokenizer: TextTokenizer) -> str:
    """Tokens of one text; those that are masked are marked with what stands in their place."""
    assert batch.text_ids is not None
    assert batch.text_mask is not None
    count = int(batch.text_mask[text].sum())
    names = tokenizer.tokens(batch.text_ids[text, :count].tolist())
    if batch.masked_ids is None or batch.masked_labels is None:
        return html.escape(" ".join(names))
    seen = tokenizer.tokens(batch.masked_ids[text, :count].tolist())
    out = []
    for place, name in enumerate(names):
        word = html.escape(name)
        if int(batch.masked_labels[text, place]) >= 0:
            word = f'<mark title="asked for">{word} &rarr; {html.escape(seen[place])}</mark>'
        out.append(word)
    return " ".join(out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
