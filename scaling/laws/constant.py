"""The null: neither model size nor data matters.

L = E
"""

from scaling.law import PowerSum

LAW = PowerSum("constant", "L = E", {"E": {}})
