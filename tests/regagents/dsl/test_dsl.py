"""The DSL agent on SB3's frame: it learns, saves, loads, fine-tunes; its networks are as stated."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

import regenv  # noqa: F401
from regagents.common.curriculum import Curriculum
from regagents.common.extractors import CompactCNN, DualStreamCNN, LiaoCNN
from regagents.dsl import DSL

TINY = {"features_extractor_kwargs": {"widths": (8, 16), "strides": (2, 2), "features_dim": 32}}


def make(**arguments):
    return gym.make("RegRigid2D-v0", size=24, spacing=10.0, observation="pair", targets="drop", **arguments)


def agent(**arguments):
    torch.manual_seed(0)
    return DSL("CompactPolicy", make(), **{"batch_size": 32, "seed": 3, "policy_kwargs": TINY, "learning_rate": 3e-3,
                                           **arguments})


def loss_on(model, batches=4):
    """Mean squared error on pairs and poses that training did not draw."""
    env = gym.make_vec("RegRigid2D-v0", num_envs=32, size=24, spacing=10.0, observation="pair", targets="drop",
                       privileged=True)
    losses = []
    for batch in range(batches):
        observations, infos = env.reset(seed=900_000 + 32 * batch)
        with torch.no_grad():
            losses.append(((model.q_net(observations.float()) - infos["q_star"]) ** 2).mean().item())
    return np.mean(losses)


def test_learns_targets_on_unseen_poses():
    model = agent()
    before = loss_on(model)
    model.learn(32 * 300)
    assert loss_on(model) < 0.7 * before


def test_same_seed_same_weights():
    first, second = agent().learn(32 * 6), agent().learn(32 * 6)
    for a, b in zip(first.q_net.parameters(), second.q_net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_save_load_predict_evaluate(tmp_path):
    model = agent().learn(32 * 3)
    model.save(tmp_path / "agent.zip")
    loaded = DSL.load(tmp_path / "agent.zip", env=make())
    observation, _ = make().reset(seed=5)
    assert model.predict(observation, deterministic=True)[0] == loaded.predict(observation, deterministic=True)[0]
    mean, _ = evaluate_policy(loaded, make(max_episode_steps=5), n_eval_episodes=2, warn=False)
    assert np.isfinite(mean)


def test_callback_can_stop_training_and_counts_samples():
    class StopAt(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 96

    model = agent().learn(32 * 50, callback=StopAt())
    assert model.num_timesteps == 96


def test_finetune_is_dqn_with_replay_on_the_learned_network():
    model = agent(learning_starts=20, buffer_size=100).learn(32 * 3)
    learned = [p.clone() for p in model.q_net.parameters()]
    model.finetune(60)
    assert model.replay_buffer.pos == 60
    assert any(not torch.equal(a, b) for a, b in zip(learned, model.q_net.parameters(), strict=True))


def test_paper_schedule_and_network():
    model = DSL("LiaoPolicy", make(), schedule="liao", learning_rate=6e-5, batch_size=4, seed=0)
    assert isinstance(model.optimizer, torch.optim.RMSprop)
    assert isinstance(model.q_net.features_extractor, LiaoCNN)
    convolutions = [m.out_channels for m in model.q_net.features_extractor.modules() if isinstance(m, torch.nn.Conv2d)]
    dense = [m.out_features for m in model.q_net.modules() if isinstance(m, torch.nn.Linear)]
    assert convolutions == [8, 32, 32, 128, 128] and dense == [512, 512, 64, 6]
    model.updates = 25_000
    assert model.lr(0.5) == pytest.approx(6e-5 * 0.7**2)
    model.learn(8)


@pytest.mark.parametrize("shape", [(2, 40, 36), (2, 20, 24, 16)])
@pytest.mark.parametrize("extractor", [CompactCNN, LiaoCNN])
def test_extractors_scale_bytes_themselves(shape, extractor):
    byte = gym.spaces.Box(0, 255, shape, np.uint8)
    unit = gym.spaces.Box(0, 1, shape, np.float32)
    torch.manual_seed(0)
    one = extractor(byte).eval()
    torch.manual_seed(0)
    other = extractor(unit).eval()
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8)
    assert torch.allclose(one(image), other(image / 255), atol=1e-5)
    assert one(image).shape == (3, one.features_dim)


def test_dual_stream_network_is_the_papers():
    """Krebs et al. 2017, section 3: two streams of 32, 64, 64 filters of 3 x 3 and two poolings; 128, 128, 64."""
    space = gym.spaces.Box(0, 255, (2, 100, 100), np.uint8)
    network = DualStreamCNN(space)
    convolutions = [(m.in_channels, m.out_channels, m.kernel_size) for m in network.modules()
                    if isinstance(m, torch.nn.Conv2d)]
    assert convolutions == [(1, 32, (3, 3)), (32, 64, (3, 3)), (64, 64, (3, 3))] * 2
    assert [m.out_features for m in network.modules() if isinstance(m, torch.nn.Linear)] == [128, 128, 64]
    assert network.head[0].in_features == 2 * 64 * 25 * 25
    image = torch.randint(0, 256, (3, 2, 100, 100), dtype=torch.uint8)
    network.eval()
    swapped = network(image.flip(1))
    assert network(image).shape == (3, 64) and not torch.allclose(network(image), swapped)
    volume = DualStreamCNN(gym.spaces.Box(0, 1, (2, 20, 75, 75), np.float32), shrink=(2, 3, 3))
    assert volume(torch.rand(2, 2, 20, 75, 75)).shape == (2, 64)
    with pytest.raises(ValueError, match="1 channels; it needs 2"):
        DualStreamCNN(gym.spaces.Box(0, 255, (1, 36, 36), np.uint8))


def test_best_actions_are_taken_with_the_given_odds():
    model = agent(policy_kwargs={**TINY, "best_odds": (0.6, 0.3, 0.1)})
    observation = np.stack([make().reset(seed=1)[0]] * 4000)
    taken = np.bincount(model.predict(observation, deterministic=True)[0], minlength=6) / 4000
    with torch.no_grad():
        rank = model.q_net(torch.as_tensor(observation[:1])).argsort(dim=1, descending=True)[0]
    assert taken[rank].round(1).tolist() == [0.6, 0.3, 0.1, 0, 0, 0]


def test_curriculum_rises_linearly_between_its_shares():
    curriculum = Curriculum(start=0.2, end=0.6, difficulty=(0.0, 1.0), reach=(0.5, 1.0))
    assert curriculum.at(0.1) == {"difficulty": 0.0, "reach": 0.5}
    assert curriculum.at(0.4) == pytest.approx({"difficulty": 0.5, "reach": 0.75})
    assert curriculum.at(0.9) == {"difficulty": 1.0, "reach": 1.0}


@pytest.mark.parametrize("wrong", [{"schedule": "linear"}, {"poses_per_image": 0},
                                   {"policy_kwargs": {"best_odds": (0.5, 0.2)}}])
def test_bad_arguments_are_named(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match="best_odds" if name == "policy_kwargs" else name):
        agent(**wrong)


def test_masked_actions_are_not_taken():
    """As sb3-contrib's MaskablePPO: the best of those allowed; any where none is."""
    model = agent()
    observation = np.stack([make().reset(seed=i)[0] for i in range(8)])
    with torch.no_grad():
        rank = model.q_net(torch.as_tensor(observation)).argsort(1, descending=True).numpy()
    masks = np.ones((8, 6), dtype=bool)
    masks[np.arange(8), rank[:, 0]] = False
    assert model.predict(observation, deterministic=True, action_masks=masks)[0].tolist() == rank[:, 1].tolist()
    assert model.predict(observation[0], deterministic=True, action_masks=masks[0])[0] == rank[0, 1]
    assert model.predict(observation[:1], action_masks=np.zeros((1, 6), dtype=bool))[0][0] in range(6)


def test_a_rejected_action_is_never_taken_while_another_is_allowed():
    """Though the odds are on the second and third best, and these are rejected."""
    model = agent(policy_kwargs={**TINY, "best_odds": (0.0, 0.5, 0.5)})
    observation = np.stack([make().reset(seed=1)[0]] * 300)
    with torch.no_grad():
        rank = model.q_net(torch.as_tensor(observation[:1])).argsort(1, descending=True)[0].numpy()
    for allowed in ([0], [5], [1, 4], [0, 2, 3]):
        masks = np.zeros((300, 6), dtype=bool)
        masks[:, rank[allowed]] = True
        taken = set(model.predict(observation, deterministic=True, action_masks=masks)[0].tolist())
        assert taken == set(rank[allowed][1:3].tolist() or rank[allowed].tolist())
    assert set(model.predict(observation, deterministic=True)[0].tolist()) == set(rank[1:3].tolist())


def test_finetuning_compares_rewards_with_values_where_targets_are_per_unit(monkeypatch):
    """A network that says 1 mm per mm of every action of the geometric id: its values are 1, 4 and 16 mm."""
    env = gym.make("RegRigid3DGeometric-v0", size=12, spacing=16.0,
                   source={"name": "phantoms", "patients": 2, "bank_spacing": 8.0})
    extractor = {"widths": [4], "strides": [4], "features_dim": 8}
    model = DSL("CompactPolicy", env, learning_rate=1e-9, batch_size=8, seed=0, learning_starts=8, buffer_size=8,
                train_freq=1, gamma=0.5, policy_kwargs={"features_extractor_kwargs": extractor})
    for network in (model.q_net, model.q_net_target):
        torch.nn.init.zeros_(network.q_net[-1].weight)
        torch.nn.init.ones_(network.q_net[-1].bias)
    compared = []
    loss = torch.nn.functional.smooth_l1_loss
    monkeypatch.setattr("stable_baselines3.dqn.dqn.F.smooth_l1_loss", lambda now, later: (
        compared.append((now.detach(), later)), loss(now, later))[1])
    model.finetune(12)
    stored = model.replay_buffer
    seen = {(round(4.0 ** (int(action) // 12), 3), round(float(reward) + (1 - float(done)) * 0.5 * 16, 3))
            for action, reward, done in zip(stored.actions[:, 0, 0], stored.rewards[:, 0], stored.dones[:, 0],
                                            strict=True)}
    now, later = compared[-1]
    pairs = {(round(x, 3), round(y, 3)) for x, y in zip(now.flatten().tolist(), later.flatten().tolist(), strict=True)}
    assert pairs <= seen and max(x for x, _ in pairs) > 1
    observations, infos = model.sampler().reset(seed=5)
    with torch.no_grad():
        wanted = (1 - infos["q_star"]).square().mean()
        assert model.loss(observations, infos).item() == pytest.approx(wanted.item(), rel=1e-4)
