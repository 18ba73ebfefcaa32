from pathlib import Path


def test_x(lit, folder):
    assert lit("--trainer.max_steps", "3") == 0
    a = sorted(Path(folder).rglob("*.ckpt"))
    print(a)
    last = [p for p in a if p.name == "last.ckpt"][0]
    assert lit("--trainer.max_steps", "6", "--ckpt_path", str(last)) == 0
    print(sorted(Path(folder).rglob("*.ckpt")), sorted(Path(folder).rglob("config*.yaml")))
