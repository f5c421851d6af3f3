-- grain: one row per (factors, sequence)
-- not the stored table: two runs at one time may both have computed a sequence
create or replace view self_influences as
select
    factors_id,
    sequence_id,
    max(self_influence) as self_influence,
    max(gradient_norm) as gradient_norm
from stored.self_influences
group by factors_id, sequence_id
