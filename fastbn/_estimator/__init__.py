"""What scikit-learn asks of an estimator, without scikit-learn.

``base``        parameters, repr, tags: what makes an estimator
``table``       what is given as X becomes an array
``features``    names and number of features
``containers``  results become DataFrames, where that is wished
``passes``      the passes over memory: statistics, scaling and its inverse

scikit-learn is imported only where scikit-learn itself asks (for tags), and looked at only if it is
loaded: its ``NotFittedError`` is raised then, and its configuration holds.
"""
