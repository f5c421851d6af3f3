-- grain: one row per (query of a run, rank): the k sequences that raised the query most
-- not one of those that lowered it, however few there are
select i.query_id, i.influence_rank as rank, i.sequence_id, i.influence
from influences i
join runs r on r.run_id = i.run_id and r.method = i.method
where i.run_id = $run and i.influence_rank <= $k and i.influence > 0
order by i.query_id, i.influence_rank
