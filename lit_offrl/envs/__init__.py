"""Gymnasium environments that users cannot get elsewhere; importing this registers their ids.

No simulator is imported before an environment is made.
"""

from lit_offrl.envs import adroit, antmaze, kitchen, locomotion, maze2d, mountain_car, random_walk

for _family in (adroit, antmaze, kitchen, locomotion, maze2d, mountain_car, random_walk):
    _family.register()
