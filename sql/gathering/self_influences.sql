-- grain: one row per sequence of the files that become one, with its largest values: sql/relations/self_influences.sql
select
    factors_id,
    sequence_id,
    max(self_influence) as self_influence,
    max(gradient_norm) as gradient_norm
from chosen
group by factors_id, sequence_id
order by factors_id, sequence_id
