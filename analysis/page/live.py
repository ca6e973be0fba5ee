"""The live page as html: one document whose script asks for the sweep's state and builds what it shows.

What a sweep says never becomes markup: the script writes text into elements that it makes itself.
"""

from html import escape

from analysis.page.document import digest_of, read_asset


def live_document(name: str) -> tuple[str, str]:
    """Return the page and its content security policy."""
    style, script = read_asset("page.css") + read_asset("live.css"), read_asset("live.js")
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest_of(style)}'; "
        f"script-src 'sha256-{digest_of(script)}'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}, live</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"{_BODY.replace('NAME', escape(name))}<script>{script}</script>\n</body>\n</html>\n"
    )
    return page, policy


_BODY = """\
<header>
<p class="over">NAME <span id="status" class="badge">…</span></p>
<h1 id="question">NAME</h1>
<p class="expect" id="expect"></p>
<p class="found" id="found"></p>
<p id="progress">The page needs its script; <code>harness status NAME</code> shows the same without.</p>
<div class="bar"><div id="bar"></div></div>
<ul class="plain faint" id="devices"></ul>
<p class="note" id="said" role="status" hidden></p>
</header>
<section class="columns">
<div>
<h2>Leaders</h2>
<p class="faint">Of the search, which chose by these numbers: they flatter.</p>
<div class="scroll"><table><thead id="leaders-head"></thead><tbody id="leaders"></tbody></table></div>
<div id="confirmed-part" hidden>
<h2>Confirmed</h2>
<p class="faint">Fresh seeds; mean ± half of the 95 % interval.</p>
<div class="scroll"><table><thead id="confirmed-head"></thead><tbody id="confirmed"></tbody></table></div>
</div>
</div>
<div>
<h2>Curves</h2>
<div id="curves"></div>
</div>
</section>
<section>
<h2>Tell the sweep</h2>
<div class="forms">
<form id="form-sweep"><h3>Stop</h3><p class="faint">Every run in flight keeps a checkpoint; the same command
goes on.</p><button type="submit" id="stop-sweep">Stop the sweep</button></form>
<form id="form-trials"><h3>More trials</h3><label>how many <input id="more" type="number" min="1" value="8"
required></label><button type="submit">Add</button></form>
<form id="form-value"><h3>A value more</h3><label>axis <select id="axis"></select></label>
<label>value <input id="value" required></label><p class="faint" id="described"></p>
<button type="submit">Add</button></form>
<form id="form-clone"><h3>Clone a run</h3><label>run <input id="clone-of" required></label>
<label>with <input id="changes" placeholder="optim.lr=3e-3 lora.rank=16" required></label>
<button type="submit">Train</button></form>
</div>
</section>
<section>
<h2>Runs</h2>
<p class="faint" id="runs-count"></p>
<div class="scroll"><table><thead><tr><th>run</th><th>role</th><th>point</th><th class="number">seed</th>
<th>status</th><th class="number">step</th><th></th></tr></thead><tbody id="runs"></tbody></table></div>
</section>
<section>
<h2>Log</h2>
<ul class="plain" id="problems"></ul>
<pre id="log"></pre>
</section>
"""
