from trainer.reporting.percent import percent


def test_a_share_is_percent_with_half_of_its_interval() -> None:
    assert percent(0.625) == "62.5"
    assert percent(0.625, 0.084) == "62.5 ± 8.4"
    assert percent(0.031, 0.02, sign="+", pm=" +-") == "+3.1 +-2.0"
    assert percent(0.934, digits=0) == "93"
