"""Plain float64 readings of the formulas, row by row, sharing no code with the package."""

import torch


def softmax(logits, T=1.0):
    return torch.softmax(logits.double() / T, -1)


def kl(p, q):
    return (p * (p / q).log()).sum()


def kept_rows(student, teacher, mask):
    rows_s, rows_t = student.reshape(-1, student.shape[-1]), teacher.reshape(-1, teacher.shape[-1])
    keep = torch.ones(len(rows_s), dtype=torch.bool) if mask is None else mask.flatten()
    return [(rows_s[i], rows_t[i]) for i in range(len(rows_s)) if keep[i]]


def mean_over_rows(row_value, student, teacher, mask):
    values = [row_value(s, t) for s, t in kept_rows(student, teacher, mask)]
    return sum(values) / max(1, len(values))


def log_kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum()


def log_softmax(logits, T=1.0):
    return torch.log_softmax(logits.double() / T, -1)


def forward_kl(student, teacher, T=1.0, mask=None):
    return mean_over_rows(lambda s, t: T**2 * log_kl(log_softmax(t, T), log_softmax(s, T)), student, teacher, mask)


def backward_kl(student, teacher, T=1.0, mask=None):
    return mean_over_rows(lambda s, t: log_kl(log_softmax(s, T), log_softmax(t, T)), student, teacher, mask)


def jsd(student, teacher, T=1.0, mask=None, beta=0.5):
    def row(s, t):
        p, q = softmax(t, T), softmax(s, T)
        m = beta * p + (1 - beta) * q
        parts = [torch.special.xlogy(a, a) - torch.special.xlogy(a, m) for a in (p, q)]
        return (beta * parts[0] + (1 - beta) * parts[1]).sum()

    return mean_over_rows(row, student, teacher, mask)


def tv(student, teacher, T=1.0, mask=None):
    return mean_over_rows(lambda s, t: 0.5 * (softmax(t, T) - softmax(s, T)).abs().sum(), student, teacher, mask)


def pearson(a, b, eps=1e-8):
    a, b = a - a.mean(), b - b.mean()
    return (a @ b) / (a.square().sum().sqrt() * b.square().sum().sqrt() + eps)


def dist(student, teacher, T=1.0, mask=None, beta=1.0, gamma=1.0):
    rows = kept_rows(student, teacher, mask)
    q, p = (softmax(torch.stack([row[i] for row in rows]), T) for i in (0, 1))
    inter = 1 - sum(pearson(a, b) for a, b in zip(q, p)) / len(q)
    intra = 1 - sum(pearson(a, b) for a, b in zip(q.T, p.T)) / q.shape[1]
    return T**2 * (beta * inter + gamma * intra)


def dkd(student, teacher, target, T=4.0, alpha=1.0, beta=8.0, keep=None):
    values = []
    for i in range(len(target)):
        if keep is not None and not keep[i]:
            continue
        y = int(target[i])
        others = [k for k in range(student.shape[-1]) if k != y]
        p, q = softmax(teacher[i], T), softmax(student[i], T)
        tckd = kl(torch.stack([p[y], 1 - p[y]]), torch.stack([q[y], 1 - q[y]]))
        nckd = kl(softmax(teacher[i][others], T), softmax(student[i][others], T))
        values.append(T**2 * (alpha * tckd + beta * nckd))
    return sum(values) / max(1, len(values))


def linear_cka(x, y):
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    return (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


def rbf_cka(x, y, sigma=1.0):
    grams = []
    for z in (x.double(), y.double()):
        n = len(z)
        squared = (z[:, None] - z[None]).square().sum(-1)
        middle = squared.flatten().sort().values[(n * n - 1) // 2]
        centre = torch.eye(n, dtype=torch.float64) - 1 / n
        grams.append(centre @ torch.exp(-squared / (2 * sigma**2 * middle)) @ centre)
    return (grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm())


def attention_map(f, p=2.0):
    rows = f.double().abs().pow(p).mean(1).flatten(1)
    return rows / rows.norm(dim=1, keepdim=True)


def relation_kl(student, teacher, R, mask=None):
    values = []
    for b in range(len(student)):
        keep = slice(None) if mask is None else mask[b]
        s, t = student[b][keep].double(), teacher[b][keep].double()
        if len(s) == 0:
            continue
        total = 0.0
        for head_s, head_t in zip(s.chunk(R, -1), t.chunk(R, -1)):
            rel_s, rel_t = (torch.log_softmax(h @ h.T / h.shape[-1] ** 0.5, -1) for h in (head_s, head_t))
            total = total + (rel_t.exp() * (rel_t - rel_s)).sum()
        values.append(total / (R * len(s)))
    return sum(values) / max(1, len(values))


def gradient(function, student):
    """Return value and gradient of ``function`` at ``student``."""
    leaf = student.detach().clone().requires_grad_()
    value = function(leaf)
    (grad,) = torch.autograd.grad(value, leaf)
    return value.detach(), grad


def floored_kl(p, q, eps=1e-12):
    return sum(a * (a.clamp_min(eps).log() - b.clamp_min(eps).log()) for a, b in zip(p, q) if a > 0)


def masked_maps(maps, query_mask, key_mask):
    """One sample, ``(H, Q, K)``: zero what does not count, then divide rows by their sums if keys are masked."""
    if query_mask is not None:
        maps = torch.where(query_mask[None, :, None], maps, 0)
    if key_mask is not None:
        maps = torch.where(key_mask, maps, 0)
        rows = [[row / row.sum() if row.sum() > 0 else row for row in head] for head in maps]
        maps = torch.stack([torch.stack(head) for head in rows])
    return maps


def cosine(a, b):
    size = a.norm() * b.norm()
    return (a * b).sum() / size if size > 0 else 0 * (a * b).sum()


def amad_sample(student, teacher, query_mask=None, key_mask=None, variant="kl", tau=1.0, head_reduction="sum"):
    """AMAD of one sample from its maps ``(H, Q, K)``, steps 0 to 6 one after the other."""
    student, teacher = (masked_maps(x.double(), query_mask, key_mask) for x in (student, teacher))
    Q = student.shape[1]
    counted = [q for q in range(Q) if query_mask is None or query_mask[q]]

    def weights(t, heads):
        return torch.softmax(torch.stack([cosine(t, s) for s in heads]) / tau, 0)

    values = []
    for t in teacher:
        if variant == "token_kl":
            value = student.sum() * 0
            for q in counted:
                a = weights(t[q], student[:, q])
                value = value + floored_kl(t[q], sum(w * s[q] for w, s in zip(a, student)))
        elif variant == "mse":
            a = weights(t, student)
            unit = [x / x.norm() if x.norm() > 0 else x for x in (t, *student)]
            value = (unit[0] - sum(w * s for w, s in zip(a, unit[1:]))).square().sum()
        else:
            a = weights(t, student)
            mixture = sum(w * s for w, s in zip(a, student))
            value = sum((floored_kl(t[q], mixture[q]) for q in counted), student.sum() * 0) / max(1, len(counted))
        values.append(value)
    return sum(values) / (len(values) if head_reduction == "mean" else 1)


def amad(student, teacher, query_mask=None, key_mask=None, **options):
    masks = [[None] * len(student) if mask is None else mask for mask in (query_mask, key_mask)]
    samples = [amad_sample(*parts, **options) for parts in zip(student, teacher, *masks)]
    return sum(samples) / len(samples)
