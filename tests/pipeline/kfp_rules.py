"""What Kubeflow Pipelines 2.17 refuses: status, code and the first words of the reason (recorded/api.json has them)."""

STATUS = {3: 400, 5: 404, 6: 409, 7: 403, 13: 500, 16: 401}  # by gRPC code
KINDS = {
    "STRING": (str, "requires type string, but the input parameter is not of string value type"),
    "BOOLEAN": (bool, "requires type bool, but the input parameter is not of bool value type"),
    "LIST": (list, "requires type list, but the input parameter is not of list value type"),
    "STRUCT": (dict, "requires type struct, but the input parameter is not of struct value type"),
}
NUMBER = "requires type double or integer, but the parameter value is not of number value type"


class RefusedError(Exception):
    """`inner` is what the code at fault said, `message` what the layers above it made of that."""

    def __init__(self, code, message, inner=None):
        self.code, self.message, self.inner = code, message, inner or message

    def answer(self):
        detail = {"@type": "type.googleapis.com/google.rpc.Status", "code": self.code, "message": self.inner}
        return STATUS[self.code], {"code": self.code, "message": self.message, "details": [detail]}


def check_parameters(spec, values):
    """In the order of the server's: each parameter of the pipeline, and then what it does not have."""
    known = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, one in known.items():
        kind, value = one["parameterType"], values.get(name)
        if name not in values:
            if not one.get("isOptional") and "defaultValue" not in one:
                return wrong(f"parameter {name} is not optional, yet has neither default value nor user provided value")
        elif kind.startswith("NUMBER"):
            if isinstance(value, bool) or not isinstance(value, int | float):
                return wrong(f"input parameter {name} {NUMBER}")
        elif not isinstance(value, KINDS[kind][0]):
            return wrong(f"input parameter {name} {KINDS[kind][1]}")
    if extra := [name for name in values if name not in known]:
        return wrong(f"parameter(s) provided are not required by pipeline: {', '.join(extra)}")
    return None


def wrong(inner):
    start = "Failed to create a new run: Failed to generate the ExecutionSpec: invalid pipeline job inputs: "
    raise RefusedError(3, f"{start}Invalid input error: {inner}", inner)


def check_schedule(body):
    def refuse(inner):
        start = "Failed to create a recurring run due to conversion error: Invalid input error: "
        raise RefusedError(3, start + inner, inner)

    cron = body.get("trigger", {}).get("cron_schedule", {}).get("cron", "")
    fields = len(cron.split())
    if not cron.startswith("@") and fields not in (5, 6):
        refuse(f"Schedule cron is not a supported format. Error: Expected 5 to 6 fields, found {fields}: {cron}")
    if not 1 <= (most := int(body.get("max_concurrency", 0))) <= 10:
        refuse(f"Max concurrency of a recurring run must be at least 1 and at most 10. Received {most}")


def check_length(kind, name, limit):
    if len(name) > limit:
        raise RefusedError(3, f"Failed to create a {kind.lower()}: {kind}.Name length cannot exceed {limit}")


def absent(kind, name):
    what = {"runs": "Run", "recurringruns": "Job"}.get(kind, kind)
    inner = f"{what} {name} not found"
    return RefusedError(5, f"Failed to fetch {name}: ResourceNotFoundError: {inner}", inner)


class Access:
    """Who may do what. `users`: {Authorization header: namespaces}; None for an installation for a single user."""

    def __init__(self, users=None):
        self.users = users

    def check(self, kind, namespace, who, listing=True):
        """Of a call that lists or makes something in `namespace`."""
        if self.users is None:
            return
        if not namespace:
            code = 7 if kind == "pipelines" else 3
            inner = f"A {kind[:-1]} cannot have an empty namespace in multi-user mode"
        elif who not in self.users:
            code, inner = 16, "Failed to check authorization. User identity is empty in the request header"
        elif namespace not in self.users[who]:
            code, inner = 7, f"User 'somebody' is not authorized with reason:  (request: namespace {namespace})"
        else:
            return
        start = f"Failed to list {kind}" if listing else f"Failed to create a {kind[:-1]}"
        where = f"Check if you have permission to access namespace {namespace}"
        raise RefusedError(code, f"{start}: {start} due to authorization error. {where}: {inner}", inner)
