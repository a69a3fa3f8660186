"""PPO in one file on the torch-native batch: observations never leave the device, no buffer is copied to the host.

    python examples/ppo_torch.py 200000 cuda
"""

import sys

import gymnasium as gym
import torch
from torch import nn
from torch.distributions import Categorical

import regenv  # noqa: F401

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60_000
DEVICE = sys.argv[2] if len(sys.argv) > 2 else "cpu"
LANES, HORIZON, EPOCHS, BATCH = 32, 32, 4, 256
GAMMA, LAMBDA, CLIP, ENTROPY, RATE = 0.9, 0.9, 0.2, 0.005, 5e-4


class ActorCritic(nn.Module):
    def __init__(self, channels, actions):
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(channels, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(),
                                  nn.Conv2d(32, 32, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(128), nn.ReLU())
        self.actor, self.critic = nn.Linear(128, actions), nn.Linear(128, 1)

    def forward(self, observation):
        seen = self.look(observation.float() / 255)
        return Categorical(logits=self.actor(seen)), self.critic(seen).squeeze(-1)


def advantages(rewards, values, ended, last):
    """Generalised advantage estimation (Schulman et al. 2016), each (HORIZON, LANES)."""
    found, running = torch.zeros_like(rewards), torch.zeros_like(last)
    for t in reversed(range(len(rewards))):
        ahead = last if t == len(rewards) - 1 else values[t + 1]
        going = 1 - ended[t]
        running = rewards[t] + GAMMA * going * ahead - values[t] + GAMMA * LAMBDA * going * running
        found[t] = running
    return found


torch.manual_seed(0)
env = gym.make_vec("RegRigid2D-v0", num_envs=LANES, device=DEVICE, size=48, spacing=5.0, observation="pair",
                   autoreset_mode="SameStep", max_episode_steps=50)
seen, _ = env.reset(seed=0)
net = ActorCritic(seen.shape[1], int(env.single_action_space.n)).to(DEVICE)
net(seen)
optimizer = torch.optim.Adam(net.parameters(), RATE)
updates = max(1, STEPS // (LANES * HORIZON))
for update in range(updates):
    rows = []
    with torch.no_grad():
        for _ in range(HORIZON):
            policy, value = net(seen)
            action = policy.sample()
            after, reward, terminated, truncated, _ = env.step(action)
            rows.append((seen, action, policy.log_prob(action), value, reward, (terminated | truncated).float()))
            seen = after
        last = net(seen)[1]
    images, actions, chances, values, rewards, ended = (torch.stack(column) for column in zip(*rows, strict=True))
    gain = advantages(rewards, values, ended, last)
    goal = gain + values
    flat = [part.flatten(0, 1) for part in (images, actions, chances, gain, goal)]
    for _ in range(EPOCHS):
        for index in torch.randperm(LANES * HORIZON, device=DEVICE).split(BATCH):
            image, action, chance, g, wanted = (part[index] for part in flat)
            policy, value = net(image)
            ratio = (policy.log_prob(action) - chance).exp()
            g = (g - g.mean()) / (g.std() + 1e-8)
            surrogate = torch.minimum(ratio * g, ratio.clamp(1 - CLIP, 1 + CLIP) * g).mean()
            loss = -surrogate + 0.5 * (wanted - value).square().mean() - ENTROPY * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
    if update % 10 == 0 or update == updates - 1:
        print(f"{(update + 1) * LANES * HORIZON:8d} steps: reward a step {rewards.mean():.3f}", flush=True)
