-- grain: one row per sequence of a block whose self-influence is stored
select distinct sequence_id
from stored.self_influences
where factors_id = $factors_id
  and sequence_id between $first and $last
