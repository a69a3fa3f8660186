"""One episode in numpy, then many at once in torch."""

import gymnasium as gym

import regenv  # noqa: F401  registers the ids

env = gym.make("RegRigid2D-v0", render_mode="rgb_array")
observation, info = env.reset(seed=0)
print(f"one episode: {observation.shape} {observation.dtype}, {info['tre']:.1f} mm off at the start")
for _ in range(10):
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
print(f"after ten random actions: {info['tre']:.1f} mm off; a frame is {env.render().shape}")

batch = gym.make_vec("RegRigid3D-v0", num_envs=8, size=32, spacing=6.5)
observations, infos = batch.reset(seed=0)
observations, rewards, terminations, truncations, infos = batch.step(batch.action_space.sample())
print(f"eight episodes: {tuple(observations.shape)} {observations.dtype}, rewards {rewards.tolist()}")
