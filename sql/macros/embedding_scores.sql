-- grain: one row per (query, sequence): cosine of mean hidden states, of one layer or of several joined end to end
-- not of incomplete runs, unless `relation` names the rows of one; layer 0 is the embedding layer's output
create or replace macro embedding_scores(run, layers := [0], relation := 'hidden_similarities') as table
select
    query_id,
    sequence_id,
    coalesce(
        sum(dot order by layer)
        / nullif(sqrt(sum(query_norm ** 2 order by layer)) * sqrt(sum(sequence_norm ** 2 order by layer)), 0),
        0
    ) as influence
from query_table(relation)
where run_id = run and list_contains(layers, layer)
group by query_id, sequence_id
