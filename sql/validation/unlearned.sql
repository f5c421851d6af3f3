-- grain: one row per (what was unlearned, what was measured): its loss after and before, in nats
-- not a mean per token: that is the difference divided by n_tokens; kind 'none' is left out
with before as (
    select measured, name, loss from unlearnings where study_id = $study and kind = 'none'
)
select u.kind, u.unlearned, u.measured, u.name, u.loss, b.loss as loss_before, u.n_tokens, u.seconds
from unlearnings u
join before b on b.measured = u.measured and b.name = u.name
where u.study_id = $study and u.kind <> 'none'
order by u.kind, u.unlearned, u.measured, u.name
