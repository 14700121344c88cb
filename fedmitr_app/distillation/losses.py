"""The decoupled distillation loss (paper: a sparsity mask and a relabel term; formula: choice).

    L = L_cls + beta * [ 1/N sum_i m_i CE(z_i, y) + gamma/N sum_i (1 - m_i) tau^2 KL(q_i || p_i) ]
    L_cls = (1 - hard) * T^2 KL(softmax(A/T) || softmax(z/T)) + hard * CE(z, y)

m_i = 1 for a patch that survived the inversion; p_i = softmax(z_i / tau). ``L_cls`` is the
ancestor's soft-label loss (Hinton et al., 2015); the token term follows Token Labeling
(NeurIPS 2021). All functions return one loss per image, ``[B]``.
"""

from torch import Tensor


def soft_label_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 KL(softmax(teacher/T) || softmax(student/T))`` over the last axis.

    Shapes ``[..., C], [..., C] -> [...]``.
    """
    log_student = (logits / temperature).log_softmax(-1)
    log_teacher = (teacher_logits / temperature).log_softmax(-1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(-1)


def class_loss(
    logits: Tensor, teacher_logits: Tensor, targets: Tensor, temperature: float, hard: float
) -> Tensor:
    """Return ``L_cls`` per image.

    Parameters
    ----------
    logits, teacher_logits : Tensor
        Class-token logits of the student and the ensemble, ``[B, C]``.
    targets : Tensor
        Pseudo-labels as class probabilities ``[B, C]``.
    temperature : float
        T, above 0.
    hard : float
        Share of the pseudo-label's cross-entropy, in [0, 1].
    """
    loss = soft_label_loss(logits, teacher_logits, temperature)
    if hard:
        cross_entropy = -(targets * logits.log_softmax(-1)).sum(-1)
        loss = (1 - hard) * loss + hard * cross_entropy
    return loss


def token_loss(
    patch_logits: Tensor,
    targets: Tensor,
    mask: Tensor,
    relabels: Tensor | None,
    gamma: float,
    tau: float,
) -> Tensor:
    """Return the token term in brackets, per image.

    Parameters
    ----------
    patch_logits : Tensor
        The student's token logits on all patches, ``[B, N, C]``.
    targets : Tensor
        y, ``[B, C]``.
    mask : Tensor
        m, bool ``[B, N]``.
    relabels : Tensor, optional
        The logits of q: ``[B, N, C]``, or ``[B, 1, C]`` for one label per image; ``None``
        leaves the relabel term out.
    gamma, tau : float
        Weight and temperature of the relabel term.
    """
    count = patch_logits.shape[1]
    token_targets = mask.unsqueeze(2) * targets.unsqueeze(1)
    loss = -(token_targets * patch_logits.log_softmax(-1)).sum((1, 2)) / count
    if relabels is not None and gamma:
        relabel = soft_label_loss(patch_logits, relabels.expand_as(patch_logits), tau)
        loss = loss + gamma * (relabel * ~mask).sum(1) / count
    return loss
