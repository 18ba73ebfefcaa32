"""The page that stands beside an exported policy: how it is loaded, and what it takes and gives."""

from __future__ import annotations

from pathlib import Path

from lit_offrl.export.facts import NEXT_STATE, NOISE, STATE, PolicyFacts

_WRITTEN = "Written by lit-offrl"
_SAID = {
    "observations": "raw observations, as the environment gives them",
    "goals": "where each episode goes",
    "rewards": "what the step before has earned, 0 at an episode's begin",
    NOISE: "standard normal numbers, drawn anew for each decision",
    STATE: "what the last decision gave as `next_state`; 0 in the rows where an episode begins",
    "actions": "actions in the environment's units",
    NEXT_STATE: "the `state` of the next decision",
}


def readme(facts: PolicyFacts, file: str, rate: str | None = None) -> str:
    """Return the page, Markdown, of some 30 lines.

    Args:
        facts: Of the policy.
        file: Name of its file.
        rate: How fast it decides on the machine that wrote it, a sentence.
    """
    spec, options = facts.spec, dict(facts.policy_options)
    lines = [f"# {facts.method} on {spec['name']}", ""]
    lines.append(
        f"{_WRITTEN} {facts.version} from {facts.checkpoint or 'a module in memory'}; "
        f"environment {spec['env_id'] or 'unknown'}; options {options or 'none'}."
    )
    if not facts.inputs:
        lines += ["", "```python", "from lit_offrl.modules import load_module", ""]
        lines += [f'policy = load_module("{file}").policy()', "```", ""]
        return "\n".join(lines)
    lines += ["", "Arrays are float32 of E rows, one for each environment, E ≥ 1:", ""]
    for kind, sizes in (("in", facts.inputs), ("out", facts.outputs)):
        for name, size in sizes.items():
            lines.append(f"- {kind} `{name}` (E, {size}): {_SAID[name]}")
    lines += ["", *([rate, ""] if rate else []), "```python", *_python(facts, file), "```", ""]
    if file.endswith(".onnx"):
        lines += ["```cpp", *_cpp(facts, file), "```", ""]
    return "\n".join(lines)


def is_readme(path: Path) -> bool:
    """Whether a file is such a page."""
    try:
        with path.open("rb") as stream:
            return _WRITTEN.encode() in stream.read(1000)
    except OSError:
        return False


def _python(facts: PolicyFacts, file: str) -> list[str]:
    sizes = facts.inputs
    given = [f'"{name}": np.zeros((1, {size}), np.float32)' for name, size in sizes.items()]
    if file.endswith(".onnx"):
        begin = ["import numpy as np, onnxruntime"]
        begin.append(f'session = onnxruntime.InferenceSession("{file}")')
        call = f"outputs = dict(zip({[*facts.outputs]}, session.run(None, feed)))"
    else:
        begin = ["import numpy as np, torch", f'program = torch.export.load("{file}").module()']
        call = (
            f"outputs = dict(zip({[*facts.outputs]}, "
            f"program(*[torch.from_numpy(feed[name]) for name in {[*sizes]}])))"
        )
    lines = [*begin, f"feed = {{{', '.join(given)}}}"]
    lines.append('feed["observations"][0] = 0.1  # what the robot sees')
    if NOISE in sizes:
        lines.append(
            f'feed["{NOISE}"] = np.random.standard_normal((1, {sizes[NOISE]})).astype(np.float32)'
        )
    lines += [call, 'action = outputs["actions"][0]']
    if STATE in sizes:
        lines.append(
            f'feed["{STATE}"] = np.asarray(outputs["{NEXT_STATE}"])  # zeros begin an episode'
        )
    return lines


def _cpp(facts: PolicyFacts, file: str) -> list[str]:
    names, sizes = [*facts.inputs], [*facts.inputs.values()]
    quoted = ", ".join(f'"{name}"' for name in names)
    outputs = ", ".join(f'"{name}"' for name in facts.outputs)
    return [
        "// in a main(): g++ -std=c++17 main.cpp -I INCLUDE -L LIB -lonnxruntime",
        "#include <onnxruntime_cxx_api.h>",
        "#include <vector>",
        "Ort::Env env; Ort::SessionOptions options;",
        f'Ort::Session session(env, "{file}", options);',
        f"const char* in[] = {{{quoted}}}; const char* out[] = {{{outputs}}};",
        f"int64_t sizes[] = {{{', '.join(map(str, sizes))}}};",
        "auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);",
        "std::vector<std::vector<float>> data; std::vector<Ort::Value> feed;",
        "for (int64_t size : sizes) data.emplace_back(size, 0.0f);  // fill in what is above",
        f"for (int i = 0; i < {len(names)}; ++i) {{",
        "  int64_t shape[] = {1, sizes[i]};",
        "  feed.push_back(Ort::Value::CreateTensor<float>(",
        "      memory, data[i].data(), data[i].size(), shape, 2));",
        "}",
        f"auto found = session.Run({{}}, in, feed.data(), {len(names)}, out,"
        f" {len(facts.outputs)});",
        "const float* action = found[0].GetTensorData<float>();",
    ]
