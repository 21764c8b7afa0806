"""Tables: from the columns of a file to the inputs of a network.

`source` and `arrow_table` read files with pyarrow, `target`, `features` and `columns` choose what is used, `fitting`
learns the preparation from training rows with scikit-learn, and `preparation` applies it with numpy alone. The forms of
data that are tables come in; arrays and a JSON record that is stored with the study go out.
"""
