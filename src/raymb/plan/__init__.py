"""How the workers share the work, from the spec and the model's config.json alone: sizes, rules, memory, time, search.

May import model, spec and what is below them; no framework.
"""

from raymb.plan.layout import Plan, make_plan, usable_plans
from raymb.plan.sizes import Layout

__all__ = ["Layout", "Plan", "make_plan", "usable_plans"]
