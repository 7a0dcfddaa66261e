"""The queue for machines: first come, first served, except past those who wait for machines that do not exist yet."""

from actors.reservation import Turns


def test_gangs_are_served_in_the_order_in_which_they_asked():
    turns = Turns()
    with turns.ticket() as second_last:
        with turns.ticket() as last:
            assert turns.may_ask(second_last)
            assert not turns.may_ask(last)
        assert turns.may_ask(second_last)
    with turns.ticket() as next_one:
        assert turns.may_ask(next_one)


def test_who_waits_for_an_autoscaler_lets_others_by():
    turns = Turns()
    with turns.ticket() as big, turns.ticket() as small, turns.ticket() as third:
        big.steps_aside = True
        assert turns.may_ask(small)
        assert not turns.may_ask(third)
        big.steps_aside = False
        assert not turns.may_ask(small)
