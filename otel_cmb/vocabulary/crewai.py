"""CrewAI under OpenInference and Traceloop."""

from otel_cmb.vocabulary.base import CONTAINER, Vocabulary

VERSION = "1.15.30"
SOURCE = "crewai 1.15.30 under openinference-instrumentation-crewai 1.1.21 (captures crew_oi)"

DELEGATES = frozenset(("delegateworktocoworker", "askquestiontocoworker"))
"""The tools by which an agent has another one work. What happens inside of them that agent does, and no span says so but
their arguments."""

VOCABULARY = Vocabulary(
    name="crewai",
    version=VERSION,
    source=SOURCE,
    fields={
        "agent_name": ("tool.agent_role", "crewai.agent.role", "crewai.task.agent"),
        "task_name": ("crewai.task.name", "task_name"),
    },
    overrides=((r"crewai\.workflow", CONTAINER), (r".+\.task", CONTAINER)),  # Traceloop calls them agents too
    names=((r".+\.kickoff(?:_async)?", CONTAINER),),
    scopes=("openinference.instrumentation.crewai", "opentelemetry.instrumentation.crewai"),
)
