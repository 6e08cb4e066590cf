"""Many calls that must fail in one test, which names those that do not fail as they must."""

import re


def not_refused(calls):
    """What calls do that do not raise their error; each is (name, call, error, message).

    The message is a pattern that the error's message has to contain.
    """
    found = {}
    for name, call, error, message in calls:
        try:
            call()
        except Exception as caught:
            if not (isinstance(caught, error) and re.search(message, str(caught))):
                found[name] = f"{type(caught).__name__}: {caught}"
        else:
            found[name] = "no error"
    return found
