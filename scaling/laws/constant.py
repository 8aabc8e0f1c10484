"""The null: neither model size nor data matters.

L = E
"""

from scaling.power_sum import PowerSum

LAW = PowerSum("constant", "L = E", {"E": {}})
