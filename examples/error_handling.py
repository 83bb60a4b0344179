"""What can go wrong, and what to do then: timeouts, failures, retries, cancelling, conflicts, unknown sessions.

    python examples/error_handling.py

It needs no server and no key: inturn starts what it needs and stops it again. The model is a stand-in, ``echo/echo``, as it
can be told to fail in the ways in which real ones do.
"""

import secrets

from inturn import (
    Client,
    IdempotencyConflictError,
    InturnError,
    InvalidInputError,
    SendTimeoutError,
    Session,
    SessionBusyError,
    SessionNotFoundError,
    TurnCancelledError,
    TurnFailedError,
)

PAYMENTS, SUPPORT = "errors-payments", "errors-support"


def first_line(text: str) -> str:
    return text.splitlines()[0]


def wait_again(client: Client, session: Session) -> None:
    """A timeout ends the waiting, and not the turn. Come back whenever you like, from any process."""
    try:
        session.send_and_wait("Think about it", timeout=0.5, options={"latency": 1.5})
    except SendTimeoutError as error:
        print("  not yet; the turn goes on")
        reply = client.get_turn(error.turn.id).wait(timeout=60)
        print("  later:", first_line(reply.data.content))


def let_it_retry(session: Session) -> None:
    """What may pass by itself is tried again by the workers: a 429, a 503, a connection that was refused."""
    turn = session.send("Is anybody there?", options={"fail": "unavailable", "fail_times": 2})
    reply = turn.wait(timeout=60)
    print(f"  answered at attempt {turn.attempts}: {first_line(reply.data.content)}")


def fail(session: Session) -> None:
    """What will not pass fails at once, is not paid for twice, and keeps nobody else waiting."""
    turn = session.send("This is wrong in some way", options={"fail": "invalid_request"})
    try:
        turn.wait(timeout=60)
    except TurnFailedError as error:
        print(f"  {error.error_type} ({error.status_code}), worth another try: {'yes' if error.retryable else 'no'}")
        print("  the next one:", first_line(session.send_and_wait("Never mind", timeout=60).data.content))


def cancel_and_send_again(session: Session) -> None:
    """Take a prompt back, also while it is being answered. ``retry`` sends it again, as a new turn."""
    turn = session.send("Write me a very long novel", options={"latency": 30})
    print("  taken back:", turn.cancel())
    try:
        turn.wait(timeout=60)
    except TurnCancelledError:
        again = turn.retry()
        print(f"  turn {turn.number} is {turn.state}; turn {again.number} asks the same again")
        again.cancel()


def refuse_when_busy(session: Session) -> None:
    """For a button that must not queue up clicks; other choices are enqueue, interrupt and coalesce."""
    running = session.send("First things first", options={"latency": 30})
    try:
        session.send("And me?", when_busy="reject")
    except SessionBusyError:
        print("  one thing at a time; nothing was stored")
    running.cancel()


def pay_once(session: Session) -> None:
    """One key for each thing that the user did: a request that comes twice is answered once."""
    key = f"payment-{secrets.token_hex(4)}"
    first = session.send("Pay 5 Euro to Ann", idempotency_key=key)
    second = session.send("Pay 5 Euro to Ann", idempotency_key=key)
    print("  sent twice, one turn:", first.id == second.id)
    try:
        session.send("Pay 500 Euro to Eve", idempotency_key=key)
    except IdempotencyConflictError:
        print("  the same key for something else is refused")


def check_what_comes_from_outside(client: Client) -> None:
    """Wrong calls are refused before anything is written, with what is wrong and what would be right."""
    for session_id in ("errors-nobody", "no such ID!"):
        try:
            client.resume_session(session_id)
        except (SessionNotFoundError, InvalidInputError) as error:
            print(f"  {type(error).__name__}: {str(error).partition(':')[0]}")
    try:
        client.create_session(model="nobody/gpt-0")
    except InturnError as error:  # Everything that inturn raises on purpose is one of these.
        print(f"  {type(error).__name__}: {str(error).partition(':')[0]}")


def main() -> None:
    with Client() as client:
        for leftover in (PAYMENTS, SUPPORT):  # of an earlier run of this example that was interrupted
            client.delete_session(leftover, missing_ok=True)
        support = client.create_session(SUPPORT, model="echo/echo")
        payments = client.create_session(PAYMENTS, model="echo/echo")

        print("the model is slow")
        wait_again(client, support)
        print("the model is down for a moment")
        let_it_retry(support)
        print("the model refuses")
        fail(support)
        print("the user changes their mind")
        cancel_and_send_again(support)
        print("the user is impatient")
        refuse_when_busy(support)
        print("the network repeats a request")
        pay_once(payments)
        print("the caller is wrong")
        check_what_comes_from_outside(client)

        for session_id in (PAYMENTS, SUPPORT):
            client.delete_session(session_id)


if __name__ == "__main__":
    main()
