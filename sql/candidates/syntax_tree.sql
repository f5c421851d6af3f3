-- grain: one row, the syntax tree of a statement whose condition is $expression, as JSON
-- not a result: the statement is parsed and never run
select json_serialize_sql('select 1 from sequences where ' || $expression) as tree
